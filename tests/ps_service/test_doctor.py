# SPDX-License-Identifier: Apache-2.0
"""What `fed-sophia doctor` looks at: each thing that is wrong is found, and said with what to do about it."""

import asyncio
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from ps_service.doctor import CHECKS
from ps_service.doctor.blobs import check_blobs
from ps_service.doctor.clock import check_clock
from ps_service.doctor.data_directory import check_data_directory
from ps_service.doctor.database import check_database
from ps_service.doctor.examination import examine
from ps_service.doctor.finding import Level, ok
from ps_service.doctor.limits import available_bytes, check_limits
from ps_service.doctor.operator_key import check_operator_key
from ps_service.doctor.tls_files import check_tls_files
from ps_service.doctor.variables import check_variables
from ps_service.settings import Settings
from ps_service.storage import directory_lock, migrations
from ps_service.storage.files import FileBlobs
from ps_service.storage.migrating import bring_to_head
from ps_service.storage.postgres_records import PostgresRecords
from ps_service.storage.records import open_records
from tests.certificates import Authority
from tests.postgres import FAST, a_postgres
from tests.small_disk import a_small_disk

OF_0005 = Path(__file__).parents[1] / "golden" / "postgres-schema-0005.sql"
PASSWORD = "hidden-word"


def a_server_s(directory):
    """The data directory of a server that was started once."""

    async def start():
        await (await open_records(directory / "records.sqlite")).close()

    directory.mkdir()
    asyncio.run(start())
    FileBlobs(directory)
    return Settings(server_data_dir=directory)


def on_postgres(url):
    return Settings(database_url=url)


def as_it_was(directory):
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.fixture
def silent():
    """The address of somebody who accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def run_on(url, *statements):
    async def run():
        records = PostgresRecords(url)
        async with records.write() as connection:
            for statement in statements:
                await connection.execute(text(statement))
        await records.close()

    asyncio.run(run())


# --- the database ----------------------------------------------------------------------------------


def test_a_database_that_serves_is_told_with_its_version_its_schema_and_its_latency(new_database):
    url = new_database()
    asyncio.run(bring_to_head(url))
    found = check_database(on_postgres(url))
    assert (found.level, found.measured["schema"]) == (Level.OK, migrations.HEAD)
    assert 0 < found.measured["round_trip_ms"] < 20
    assert f"PostgreSQL {found.measured['postgres']}, schema {migrations.HEAD}" in found.said


def test_an_empty_database_is_fine_if_tables_may_be_made_in_it(new_database):
    url = new_database()
    assert "empty: the first start makes it" in check_database(on_postgres(url)).said
    role = f"server-{secrets.token_hex(4)}"
    run_on(url, f'CREATE ROLE "{role}" LOGIN', "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    found = check_database(on_postgres(url.replace("postgres@", f"{role}@")))
    assert (found.level, "GRANT CREATE" in found.remedy) == (Level.ERROR, True)
    run_on(url, f'DROP ROLE "{role}"')


def test_an_older_schema_is_an_error_that_names_the_command(postgres):
    name = f"test-{secrets.token_hex(6)}"
    found = check_database(on_postgres(postgres.load(name, OF_0005)))
    assert (found.level, found.remedy) == (Level.ERROR, "run `fed-sophia database migrate`")
    assert f"is 0005, this version of fed-sophia needs {migrations.HEAD}" in found.said
    postgres.drop(name)


def test_a_newer_schema_is_an_error_unless_it_may_be_used(new_database):
    url = new_database()
    asyncio.run(bring_to_head(url))
    run_on(url, "UPDATE alembic_version SET version_num = '9999'")
    assert "schema 9999" in check_database(on_postgres(url)).said
    assert check_database(on_postgres(url)).level == Level.OK
    run_on(url, "UPDATE schema_compatibility SET oldest = '9999'")
    found = check_database(on_postgres(url))
    assert (found.level, found.remedy) == (Level.ERROR, "update fed-sophia")


def test_a_database_that_may_only_be_read_is_an_error(new_database):
    url = new_database()
    asyncio.run(bring_to_head(url))
    name = url.rpartition("/")[2]
    run_on(url, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    found = check_database(on_postgres(url))
    assert (found.level, "it is read-only" in found.said) == (Level.ERROR, True)


def test_a_user_who_may_not_write_to_the_tables_is_told_so(new_database):
    url, role = new_database(), f"server-{secrets.token_hex(4)}"
    asyncio.run(bring_to_head(url))
    run_on(url, f'CREATE ROLE "{role}" LOGIN', f'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{role}"')
    found = check_database(on_postgres(url.replace("postgres@", f"{role}@")))
    assert (found.level, "may not use the tables" in found.said) == (Level.ERROR, True)
    run_on(url, f'DROP OWNED BY "{role}"', f'DROP ROLE "{role}"')


def test_a_database_that_is_not_there_is_told_from_one_that_is_stopped_or_wants_another_password(
    postgres, require_part
):
    nowhere = check_database(on_postgres(postgres.url("nowhere")))
    assert (nowhere.level, "it has no such database" in nowhere.said) == (Level.ERROR, True)

    with a_postgres(require_part, *FAST) as another:
        url = another.url().replace("postgres@", f"postgres:{PASSWORD}@")
        assert check_database(on_postgres(url)).level == Level.OK
        access = another.directory / "pg_hba.conf"
        access.write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        another.stop()
        another.start(*FAST)
        refused = check_database(on_postgres(url))
        assert (refused.level, "the password is refused" in refused.said) == (Level.ERROR, True)
        another.stop()
        stopped = check_database(on_postgres(url))
        assert (stopped.level, "nobody listens there" in stopped.said) == (Level.ERROR, True)
        for found in (refused, stopped, check_clock(on_postgres(url))):
            assert PASSWORD not in f"{found}"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{PASSWORD}@with-an-at@127.0.0.1/x",
        f"postgresql://me@127.0.0.1:{PASSWORD}/x",
        f"mysql://me:{PASSWORD}@127.0.0.1/x",
        PASSWORD,
    ],
)
def test_no_part_of_a_url_that_may_be_a_password_is_repeated(url):
    for check in (check_database, check_clock):
        found = check(on_postgres(url))
        assert found.level != Level.OK
        assert PASSWORD not in f"{found}"


def test_an_at_sign_in_a_password_is_told_from_a_host_that_is_unknown():
    found = check_database(on_postgres(f"postgresql://me:an@{PASSWORD}@127.0.0.1/x"))
    assert "one in a password is written %40" in found.said
    assert "its host has no address" in check_database(on_postgres("postgresql://me@no..where/x")).said


def test_a_file_is_written_to_and_stays_as_it_was(tmp_path):
    settings = a_server_s(tmp_path / "data")
    found = check_database(settings)
    assert (found.level, f"schema {migrations.HEAD}" in found.said) == (Level.OK, True)
    assert not list((tmp_path / "data").glob("records.sqlite-*"))


def test_a_file_that_is_no_database_is_an_error(tmp_path):
    settings = a_server_s(tmp_path / "data")
    (tmp_path / "data" / "records.sqlite").write_bytes(b"this is no database " * 500)
    assert dict(examine({"database": lambda: check_database(settings)}))["database"].level == Level.ERROR


# --- the clock -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("off_s", "level", "said"),
    [(0, Level.OK, "0.0 s"), (7, Level.WARNING, "7.0 s ahead of"), (-7, Level.WARNING, "7.0 s behind")],
)
def test_clocks_that_are_apart_are_a_warning(new_database, off_s, level, said):
    found = check_clock(on_postgres(new_database()), lambda: time.time() + off_s)
    assert (found.level, said in found.said) == (level, True)


# --- the data directory and the blobs ----------------------------------------------------------------


def test_nothing_is_left_in_a_data_directory_also_of_a_running_server(tmp_path):
    settings = a_server_s(tmp_path / "data")
    (tmp_path / "data" / "staging" / "on-its-way").write_bytes(b"in")
    lock = directory_lock.hold(tmp_path / "data")
    before = as_it_was(tmp_path / "data")
    findings = dict(examine({name: lambda check=check: check(settings) for name, check in CHECKS.items()}))
    os.close(lock)
    files = as_it_was(tmp_path / "data")
    assert files.keys() == before.keys()
    assert all(files[path] == before[path] for path in files if path.name != "records.sqlite")
    assert "a server is running on it" in findings["data-directory"].said
    assert {finding.level for finding in findings.values()} <= {Level.OK, Level.WARNING}
    assert findings["blobs"].measured["probe_ms"] > 0


def test_a_data_directory_that_is_not_there_yet_is_not_made(tmp_path):
    found = check_data_directory(Settings(server_data_dir=tmp_path / "a" / "b"))
    assert (found.level, "the first start makes it" in found.said) == (Level.OK, True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_a_data_directory_is_an_error(tmp_path):
    (tmp_path / "data").write_text("")
    for place in (tmp_path / "data", tmp_path / "data" / "below"):
        assert check_data_directory(Settings(server_data_dir=place)).level == Level.ERROR


LOOK = """
import sys
from pathlib import Path
from ps_service.doctor import CHECKS
from ps_service.doctor.examination import examine
from ps_service.settings import Settings
settings = Settings(server_data_dir=Path(sys.argv[1]))
checks = {name: (lambda check=check: check(settings)) for name, check in CHECKS.items()}
for name, found in examine(checks):
    print(name, found.level, found.said)
"""


def looked_at_on(disk, directory):
    command = [*disk.enter, sys.executable, "-c", LOOK, str(directory)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return {line.split()[0]: line.split(maxsplit=2)[1:] for line in done.stdout.splitlines()}


def test_a_read_only_and_a_full_disk_are_errors_of_all_that_is_on_them(tmp_path, require_part):
    settings = a_server_s(tmp_path / "data")
    with a_small_disk(tmp_path / "disk", 128 * 1024**2, require_part) as disk:
        subprocess.run(["cp", "-r", str(settings.server_data_dir), str(disk.path / "data")], check=True)
        small = looked_at_on(disk, disk.mount_point / "data")
        assert (small["data-directory"][0], small["database"][0], small["blobs"][0]) == (
            "warning",
            "ok",
            "ok",
        )
        disk.fill()
        full = looked_at_on(disk, disk.mount_point / "data")
        assert (full["data-directory"][0], full["blobs"][0]) == ("error", "error")
        assert "disk is full" in full["blobs"][1]
        disk.make_room()
        disk.make_read_only()
        found = looked_at_on(disk, disk.mount_point / "data")
        assert [found[name][0] for name in ("data-directory", "database", "blobs")] == ["error"] * 3
        assert "disk is read-only" in found["data-directory"][1]
        new = looked_at_on(disk, disk.mount_point / "new")
        assert (new["data-directory"][0], "cannot be made" in new["data-directory"][1]) == ("error", True)


def test_an_object_store_is_written_read_listed_and_left_as_it_was(s3, monkeypatch, tmp_path):
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    settings = Settings(blobs_url=s3.url("doctor"), server_data_dir=tmp_path / "data")
    found = check_blobs(settings)
    assert (found.level, "written, read and deleted" in found.said) == (Level.OK, True)
    assert list(s3.objects("doctor").list("")) == []
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PASSWORD)
    refused = check_blobs(settings)
    assert (refused.level, "refuses the server's credentials" in refused.said) == (Level.ERROR, True)
    assert PASSWORD not in f"{refused}"


# --- TLS -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls") / "ca")


def with_tls(issued, key=None):
    issued.key.chmod(0o600)
    return Settings(tls_cert=issued.chain, tls_key=key or issued.key)


def test_a_certificate_is_told_with_its_names_and_its_days(authority):
    settings = with_tls(authority.issue("fl.example.org"))
    soon = check_tls_files(settings)
    assert (soon.level, soon.measured["days"]) == (Level.WARNING, 0)
    assert "for fl.example.org: the certificate expires in 0 days" in soon.said
    earlier = check_tls_files(settings, datetime.now(UTC) - timedelta(days=1))
    assert (earlier.level, earlier.measured["names"]) == (Level.WARNING, "fl.example.org")


def test_a_certificate_that_has_expired_or_is_not_valid_yet_is_an_error(authority):
    expired = check_tls_files(with_tls(authority.issue(expired=True)))
    assert (expired.level, "has expired" in expired.said) == (Level.ERROR, True)
    early = check_tls_files(with_tls(authority.issue()), datetime.now(UTC) - timedelta(days=9))
    assert (early.level, "which is to come" in early.said) == (Level.ERROR, True)


def test_files_of_tls_that_do_not_fit_or_are_not_there_are_an_error(authority, tmp_path):
    issued, other = authority.issue(), authority.issue()
    assert "is not the key of" in check_tls_files(with_tls(issued, other.key)).said
    assert "No such file" in check_tls_files(with_tls(issued, tmp_path / "none")).said
    assert "--tls-cert without --tls-key" in check_tls_files(Settings(tls_cert=issued.chain)).said
    exposed = check_tls_files(Settings(host="0.0.0.0"))
    assert (exposed.level, "plain HTTP" in exposed.said) == (Level.ERROR, True)
    assert check_tls_files(Settings(host="0.0.0.0", insecure=True)).level == Level.OK


# --- the operator's key ------------------------------------------------------------------------------


def test_an_operator_s_key_is_looked_at_where_one_is_given(tmp_path):
    file = tmp_path / "key"
    file.write_text("fso_" + secrets.token_hex(32))
    file.chmod(0o440)
    settings = Settings(server_operator_key_file=file)
    assert check_operator_key(settings).level == check_operator_key(Settings()).level == Level.OK
    file.chmod(0o444)
    assert check_operator_key(settings).remedy == f"chmod o= {file}"
    file.chmod(0o600)
    file.write_text("fso_secret")
    found = check_operator_key(settings)
    assert (found.level, "expected one line" in found.said) == (Level.ERROR, True)


# --- limits and variables ----------------------------------------------------------------------------


def test_fewer_open_files_than_may_wait_are_a_warning():
    found = check_limits(Settings(max_waiting=10**9))
    assert (found.level, "ulimit -Hn" in found.remedy) == (Level.WARNING, True)
    assert check_limits(Settings(max_waiting=1, max_uploads=1)).measured["files_needed"] == 258


def test_memory_is_that_of_the_machine_or_less_of_a_control_group(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 8000000 kB\nMemAvailable: 4000000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/a.slice/b.service\n")
    group = tmp_path / "sys/fs/cgroup/a.slice/b.service"
    group.mkdir(parents=True)
    assert available_bytes(tmp_path) == 4_096_000_000
    (group / "memory.max").write_text("max\n")
    assert available_bytes(tmp_path) == 4_096_000_000
    (group.parent / "memory.max").write_text("600000000\n")
    (group.parent / "memory.current").write_text("500000000\n")
    (group.parent / "memory.stat").write_text("anon 1\ninactive_file 50000000\n")
    assert available_bytes(tmp_path) == 150_000_000
    found = check_limits(Settings(max_waiting=1), tmp_path)
    assert (found.level, "150 MB" in found.said) == (Level.WARNING, True)
    assert available_bytes(tmp_path / "elsewhere") is None


def test_a_variable_that_nothing_reads_is_named_with_the_nearest():
    assert check_variables(["PATH", "FED_SOPHIA_PORT", "fed_sophia_host"], ()).level == Level.OK
    assert check_variables(["FED_SOPHIA_SERVER"], {"FED_SOPHIA_SERVER"}).level == Level.OK
    found = check_variables(["FED_SOPHIA_DATABSE_URL", "FED_SOPHIA_QQ"], ())
    assert found.level == Level.WARNING
    assert "FED_SOPHIA_DATABSE_URL, FED_SOPHIA_QQ" in found.said
    assert "did you mean FED_SOPHIA_DATABASE_URL?" in found.remedy


def test_what_kubernetes_says_of_a_service_of_that_name_is_known_as_such():
    links = ["FED_SOPHIA_SERVICE_HOST", "FED_SOPHIA_SERVICE_PORT_HTTP", "FED_SOPHIA_PORT_8080_TCP_ADDR"]
    assert "enableServiceLinks: false" in check_variables(links, ()).remedy


# --- all together ------------------------------------------------------------------------------------


def test_what_hangs_is_told_as_such_and_holds_up_nothing_else():
    never = threading.Event()
    began_s = time.monotonic()
    found = dict(examine({"stuck": lambda: ok(str(never.wait())), "quick": lambda: ok("well")}, 0.2))
    never.set()
    assert time.monotonic() - began_s < 5
    assert (found["quick"].said, found["stuck"].said) == ("well", "no answer within 0.2 s")
    assert found["stuck"].level == Level.ERROR


def test_a_database_that_says_nothing_is_given_up_by_itself(silent):
    found = check_database(on_postgres(f"postgresql://me:{PASSWORD}@{silent}/x"))
    assert (found.level, "it does not answer" in found.said) == (Level.ERROR, True)


def test_a_check_that_fails_is_an_error_that_tells_nothing_but_its_kind():
    def fails():
        raise ValueError(PASSWORD)

    [(_, found)] = examine({"fails": fails})
    assert (found.level, found.said) == (Level.ERROR, "the check itself failed: ValueError")
