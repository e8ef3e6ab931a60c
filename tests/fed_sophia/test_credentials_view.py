# SPDX-License-Identifier: Apache-2.0
"""What is shown of tokens and keys can be used: ids are whole on a narrow terminal, and no end is no end."""

import io

from rich.console import Console
from rich.table import Table

from fed_sophia.credentials_view import keys_table, tokens_table
from fed_sophia.workers_view import enrolled_table
from protocol.messages import JoinTokenSummary, Role, WorkerSummary
from protocol.operator_keys import OperatorKeySummary, Scope

KEY = OperatorKeySummary(
    key_id="k-0123456789ab", label="first start", scopes=frozenset(Scope), created_ms=0, expires_ms=None
)
TOKEN = JoinTokenSummary(
    token_id="t-0123456789ab",
    label="a site with a long name",
    role=Role.TRAINER,
    uses_left=100,
    created_ms=0,
    expires_ms=86_400_000,
    approve=True,
    idle_s=900,
)
WORKER = WorkerSummary(
    worker_id="w-0123456789abcdef",
    name="a-laptop-with-a-long-name",
    role=Role.TRAINER,
    tasks=("digits", "fashion-mnist-mlp"),
    enrolled_ms=0,
    last_seen_ms=0,
    approved_ms=0,
)


def shown(table: Table) -> str:
    screen = io.StringIO()
    Console(file=screen, width=80).print(table)
    return screen.getvalue()


def test_an_id_that_a_command_asks_for_is_whole_on_a_narrow_terminal():
    assert KEY.key_id in shown(keys_table([KEY]))
    assert TOKEN.token_id in shown(tokens_table([TOKEN]))
    assert WORKER.worker_id in shown(enrolled_table([WORKER]))


def test_a_key_without_an_end_is_not_said_to_be_revoked():
    assert "no end" in shown(keys_table([KEY]))
    revoked = KEY.model_copy(update={"revoked_ms": 86_400_000})
    assert "revoked" in shown(keys_table([revoked]))
    assert "revoked" not in shown(keys_table([KEY]))
