# SPDX-License-Identifier: Apache-2.0
"""`fed-sophia key …`: operators' keys, each made for as much as it is needed for."""

from typing import Annotated

import typer

from fed_sophia.commands.asking import ask
from fed_sophia.credentials_view import keys_table
from fed_sophia.options import DEFAULT_SERVER, JsonLines, OperatorKeyFile, Server, duration_s
from fed_sophia.output import output_for
from fed_sophia.trust_options import NO_CHOICE
from protocol.messages import parse
from protocol.operator_keys import OperatorKeyRequest, Scope
from worker.options import Trust

CREATE_EXAMPLES = """\b
Examples:
  fed-sophia key create --label prometheus --scope metrics:read
  fed-sophia key create --label ci --scope runs:write --expires 30d --json
"""
LIST_EXAMPLES = """\b
Examples:
  fed-sophia key list
"""
REVOKE_EXAMPLES = """\b
Examples:
  fed-sophia key revoke KEY
"""
KeyId = Annotated[str, typer.Argument(metavar="KEY", help="The key's id, as `key list` shows it.")]


def create(
    label: Annotated[str, typer.Option(help="What it is for: a word to know it by.")],
    scope: Annotated[list[Scope], typer.Option(help="What it may be used for; may be repeated.")],
    expires: Annotated[
        str | None, typer.Option(help="How long it is good for: 24h, 30d.", show_default="until revoked")
    ] = None,
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    trust: Trust = NO_CHOICE,
    json_lines: JsonLines = False,
) -> None:
    """Make an operator's key. It is shown this once; the server keeps only a hash of it."""
    expires_s = None if expires is None else round(duration_s(expires, "--expires"))
    fields = {"label": label, "scopes": frozenset(scope), "expires_s": expires_s}
    request = parse(OperatorKeyRequest, fields)
    issued = ask(server, operator_key_file, trust, lambda client: client.create_key(request))
    scopes = ", ".join(sorted(issued.scopes))
    output_for(json_lines).summary(
        f"{issued.operator_key}\n\nShown this once: {issued.key_id}, for {scopes}. Put it into a file that "
        "only its user may read, and name that by --operator-key-file.",
        issued.model_dump(mode="json"),
    )


def list_keys(
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    trust: Trust = NO_CHOICE,
    json_lines: JsonLines = False,
) -> None:
    """List the operators' keys, oldest first, also those that are of no use any more; never their secrets."""
    output = output_for(json_lines)
    found = ask(server, operator_key_file, trust, lambda client: client.keys())
    output.rows("key", lambda: keys_table(found), [key.model_dump(mode="json") for key in found])
    output.summary(f"{len(found)} operator keys", {"keys": len(found)})


def revoke(
    key_id: KeyId,
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    trust: Trust = NO_CHOICE,
    json_lines: JsonLines = False,
) -> None:
    """Let an operator's key be of use no more, at once."""
    ask(server, operator_key_file, trust, lambda client: client.revoke_key(key_id))
    output_for(json_lines).summary(f"{key_id} opens nothing any more", {"key_id": key_id})
