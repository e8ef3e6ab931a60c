# SPDX-License-Identifier: Apache-2.0
"""Shows join tokens and operators' keys; there is nothing secret in what the server says of them."""

from collections.abc import Iterable

from rich.table import Table

from fed_sophia.workers_view import table_of, time_text
from protocol.messages import JoinTokenSummary
from protocol.operator_keys import OperatorKeySummary


def tokens_table(tokens: Iterable[JoinTokenSummary]) -> Table:
    """One row a token."""
    rows = [
        (
            token.token_id,
            token.label,
            token.role.value,
            str(token.uses_left),
            _until(token.expires_ms, token.revoked_ms),
            _terms(token),
        )
        for token in tokens
    ]
    return table_of(("token", "label", "role", "uses left", "until (UTC)", "terms"), rows)


def _terms(token: JoinTokenSummary) -> str:
    terms = [f"run {token.run_id}"] if token.run_id else []
    terms += ["to be approved"] if token.approve else []
    terms += [f"expire when idle for {token.idle_s} s"] if token.idle_s else []
    return ", ".join(terms)


def keys_table(keys: Iterable[OperatorKeySummary]) -> Table:
    """One row a key."""
    rows = [
        (key.key_id, key.label, ", ".join(sorted(key.scopes)), _until(key.expires_ms, key.revoked_ms))
        for key in keys
    ]
    return table_of(("key", "label", "scopes", "until (UTC)"), rows)


def _until(expires_ms: int | None, revoked_ms: int | None) -> str:
    if revoked_ms is not None:
        return f"revoked {time_text(revoked_ms)}"
    return "no end" if expires_ms is None else time_text(expires_ms)
