# SPDX-License-Identifier: Apache-2.0
"""`fed-sophia token …`: join tokens, by which devices enrol."""

from typing import Annotated

import typer

from fed_sophia.commands.asking import ask
from fed_sophia.credentials_view import tokens_table
from fed_sophia.options import DEFAULT_SERVER, JsonLines, OperatorKeyFile, Server, duration_s
from fed_sophia.output import output_for
from fed_sophia.trust_options import NO_CHOICE
from protocol.messages import JoinTokenRequest, Role, parse
from worker.options import Trust

CREATE_EXAMPLES = """\b
Examples:
  fed-sophia token create --uses 20 --expires 24h --label site-a
  fed-sophia token create --role evaluator --label lab-gpu
  fed-sophia token create --uses 50 --expires 365d --idle-expiry 15m --label pods
"""
LIST_EXAMPLES = """\b
Examples:
  fed-sophia token list
"""
REVOKE_EXAMPLES = """\b
Examples:
  fed-sophia token revoke TOKEN
"""
TokenId = Annotated[str, typer.Argument(metavar="TOKEN", help="The token's id, as `token list` shows it.")]


def create(
    uses: Annotated[int, typer.Option(help="How many workers may enrol with it.")] = 1,
    expires: Annotated[str, typer.Option(help="How long it may be used: 90s, 10m, 24h, 7d.")] = "24h",
    role: Annotated[
        Role, typer.Option(help="What those workers may do; evaluators measure, and send no update.")
    ] = Role.TRAINER,
    label: Annotated[str, typer.Option(help="A word to know it, and its workers, by.")] = "default",
    run: Annotated[
        str | None,
        typer.Option(help="The one run that its workers may take part in.", show_default="all of their task"),
    ] = None,
    approve: Annotated[
        bool, typer.Option("--approve", help="Let each of its workers wait until an operator approves it.")
    ] = False,
    idle_expiry: Annotated[
        str | None,
        typer.Option(
            help="Let a worker expire that was not heard of for so long, and give its use back: for pods "
            "that come and go.",
            show_default="never",
        ),
    ] = None,
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    trust: Trust = NO_CHOICE,
    json_lines: JsonLines = False,
) -> None:
    """Make a join token. It is shown this once; the server keeps only a hash of it."""
    idle_s = None if idle_expiry is None else round(duration_s(idle_expiry, "--idle-expiry"))
    fields = {"uses": uses, "role": role, "label": label, "run_id": run, "approve": approve}
    fields |= {"expires_s": round(duration_s(expires, "--expires")), "idle_s": idle_s}
    request = parse(JoinTokenRequest, fields)
    issued = ask(server, operator_key_file, trust, lambda client: client.create_token(request))
    output_for(json_lines).summary(
        f"{issued.join_token}\n\nShown this once: {issued.uses} {issued.role.value}(s) may enrol with it for "
        f"{expires}. On each device:\n"
        f"  FED_SOPHIA_JOIN_TOKEN=… fed-sophia worker --server {server} --task TASK",
        issued.model_dump(mode="json"),
    )


def list_tokens(
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    trust: Trust = NO_CHOICE,
    json_lines: JsonLines = False,
) -> None:
    """List the join tokens, oldest first, also those that are of no use any more; never their secrets."""
    output = output_for(json_lines)
    found = ask(server, operator_key_file, trust, lambda client: client.tokens())
    output.rows("token", lambda: tokens_table(found), [token.model_dump(mode="json") for token in found])
    output.summary(f"{len(found)} join tokens", {"tokens": len(found)})


def revoke(
    token_id: TokenId,
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    trust: Trust = NO_CHOICE,
    json_lines: JsonLines = False,
) -> None:
    """Let no more devices enrol by a join token; those that have stay."""
    ask(server, operator_key_file, trust, lambda client: client.revoke_token(token_id))
    output_for(json_lines).summary(f"{token_id} opens nothing any more", {"token_id": token_id})
