# SPDX-License-Identifier: Apache-2.0
"""`fed-sophia serve`: run the parameter server in the foreground."""

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from fed_sophia.extras import needing
from fed_sophia.options import ExitWithParent, JsonLines
from fed_sophia.output import Output, output_for
from fed_sophia.parent_watch import exit_with_parent
from fed_sophia.server_settings import server_settings
from protocol.addresses import is_loopback

EXAMPLES = """\b
Examples:
  fed-sophia serve
  fed-sophia serve --port 9000 --data-dir /srv/fed-sophia
  fed-sophia serve --host 0.0.0.0 --tls-cert chain.pem --tls-key server.key
"""


def serve(
    host: Annotated[
        str, typer.Option(envvar="FED_SOPHIA_HOST", help="Address to listen on; 0.0.0.0 is every one.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            envvar="FED_SOPHIA_PORT", min=0, max=65535, help="Port to listen on; 0 takes any free one."
        ),
    ] = 8080,
    data_dir: Annotated[
        Path,
        typer.Option(
            envvar="FED_SOPHIA_SERVER_DATA_DIR",
            help="Where runs, tensors and the first credentials are kept.",
        ),
    ] = Path("fed-sophia-data"),
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            envvar="FED_SOPHIA_TLS_CERT",
            help="Speak TLS: the server's certificate and those that vouch for it, as PEM.",
        ),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(envvar="FED_SOPHIA_TLS_KEY", help="The private key of --tls-cert, as PEM.")
    ] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            envvar="FED_SOPHIA_TLS_CA",
            help="The CA that join tokens name, for workers to pin at first contact.",
            show_default="the last certificate of --tls-cert, if it vouches for itself",
        ),
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            envvar="FED_SOPHIA_TLS_CLIENT_CA", help="Let in only who shows a certificate of this CA."
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            envvar="FED_SOPHIA_INSECURE",
            help="Speak plain HTTP beyond this machine; for behind an ingress that speaks TLS.",
        ),
    ] = False,
    leave_with_parent: ExitWithParent = False,
    json_lines: JsonLines = False,
) -> None:
    """Run the parameter server until Ctrl-C.

    The first start makes an operator key and a join token in the data directory. Started again on the
    same directory, it goes on with the rounds it had open.
    """
    if leave_with_parent:
        exit_with_parent()
    with needing("server"):
        from ps_service.server import serve as run_server
        from ps_service.tls import advertised_ca

    output = output_for(json_lines)
    settings = server_settings(
        host=host,
        port=port,
        server_data_dir=data_dir,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_ca=tls_ca,
        tls_client_ca=tls_client_ca,
        insecure=insecure,
    )
    trusted_by = (tls_ca or tls_cert) if advertised_ca(settings) else None
    given = settings.server_operator_key_file
    key_file, token_file = given or data_dir / "operator.key", None if given else data_dir / "join.token"
    run_server(settings, lambda url: _announce(url, data_dir, key_file, token_file, trusted_by, output))
    output.summary("stopped; start again with the same --data-dir to go on", {"stopped": True})


def _announce(
    url: str,
    data_dir: Path,
    key_file: Path,
    token_file: Path | None,
    trusted_by: Path | None,
    output: Output,
) -> None:
    """Say where the server listens, where its credentials are, and what to do next."""
    output.event(
        "listening",
        f"parameter server on {url}\n"
        f"  operator key   {key_file}\n"
        f"  join token     {token_file or 'yours to make'}\n\n"
        + next_steps(url, key_file, token_file, trusted_by),
        {
            "url": url,
            "data_dir": str(data_dir),
            "operator_key_file": str(key_file),
            "join_token_file": None if token_file is None else str(token_file),
        },
    )


def next_steps(url: str, key_file: Path, token_file: Path | None, trusted_by: Path | None) -> str:
    """The commands by which a worker joins the server that listens at `url`, and an operator begins a run.

    Args:
        token_file: None if the server has made none.
        trusted_by: the file of the CA that the server is known by; None if that is left to the system.
    """
    host, where = urlsplit(url).hostname or "", ""
    if ip_address(host).is_unspecified:
        url = url.replace(f"[{host}]" if ":" in host else host, "HOST")
        where = " (HOST stands for the server's name or address)"
    server = f"--server {url}"
    if url.startswith("http:") and not is_loopback(host):
        server += " --insecure"
    as_operator = f"{server} --operator-key-file {key_file}"
    if trusted_by is not None:
        as_operator += f" --ca {trusted_by}"
    token_first = ""
    if token_file is None:
        token_file = Path("join.token")
        token_first = (
            f"First, a join token for workers{where}:\n"
            f"  fed-sophia token create {as_operator} --uses 100 | head -n 1 > {token_file}\n"
        )
    return (
        f"{token_first}Next, in another terminal, on a machine that holds data{where}:\n"
        f"  fed-sophia worker {server} --join-token-file {token_file} --task digits\n"
        "and begin a run:\n"
        f"  fed-sophia run create {as_operator} --task digits --cohort-size 1 --follow\n"
        "To see accuracies, start one more worker, an evaluator, with a token from\n"
        f"  fed-sophia token create {as_operator} --role evaluator"
    )
