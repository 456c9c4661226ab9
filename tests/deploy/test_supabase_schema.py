"""The sample's table, on a real PostgreSQL: what the functions rely on is decided there."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.monitoring import DEPLOY

(MIGRATION,) = (DEPLOY / "supabase" / "migrations").glob("*.sql")
PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=None)
ADA, BEN = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"
AS_ROOT = os.geteuid() == 0
# what every Supabase project has, as far as the table needs it
SUPABASE = f"""
create role authenticated;
create schema auth;
create table auth.users (id uuid primary key);
insert into auth.users values ('{ADA}'), ('{BEN}');
create function auth.uid() returns uuid language sql as $$ select current_setting('request.sub')::uuid $$;
grant usage on schema auth to authenticated;
alter default privileges in schema public grant select, insert, update, delete on tables to authenticated;
"""

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(PROGRAMS is None or (AS_ROOT and shutil.which("runuser") is None), reason="PostgreSQL is not installed"),
]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A single-user server reads statements from its standard input: no port, no process that stays."""
    folder = tmp_path_factory.mktemp("postgres")
    if AS_ROOT:
        shutil.chown(folder, "postgres")
        for parent in folder.parents[:3]:
            parent.chmod(parent.stat().st_mode | 0o011)
    user = ["runuser", "-u", "postgres", "--"] if AS_ROOT else []
    bin_folder, data = PROGRAMS.parent, folder / "data"
    subprocess.run(
        [*user, bin_folder / "initdb", "-D", data, "--auth=trust", "--no-sync"], check=True, capture_output=True, cwd="/"
    )
    control = [*user, bin_folder / "pg_ctl", "-D", data, "-w"]
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    subprocess.run([*control, "-o", options, "-l", folder / "log", "start"], check=True, capture_output=True, cwd="/")

    def ask(*statements):
        command = [*user, bin_folder / "psql", "-h", folder, "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-qAt"]
        return subprocess.run(command, input=";\n".join(statements), capture_output=True, text=True, check=False, cwd="/")

    try:
        done = ask(SUPABASE, MIGRATION.read_text())
        assert done.returncode == 0, done.stderr
        yield ask
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True, cwd="/")


def insert(job_id, user=ADA, **columns):
    columns = {"id": job_id, "user_id": user, "type": "video_fast", "prompt": "x", **columns}
    values = ", ".join(f"'{value}'" for value in columns.values())
    return f"insert into jobs ({', '.join(columns)}) values ({values}) on conflict (id) do nothing"


def report(job_id, status, sequence):
    """What the REST interface makes of the receiver's PATCH."""
    return f"update jobs set status='{status}', sequence={sequence} where id='{job_id}' and sequence < {sequence} returning id"


def test_reports_in_any_order_leave_the_newest(database):
    done = database(insert("a"), report("a", "completed", 9), report("a", "processing", 8), report("a", "completed", 9))
    assert (done.returncode, done.stdout.split()) == (0, ["a"])
    assert database("select status, sequence from jobs where id = 'a'").stdout.strip() == "completed|9"


def test_a_row_is_written_once(database):
    database(insert("b", prompt="first"), insert("b", user=BEN, prompt="second"))
    assert database("select prompt from jobs where id = 'b'").stdout.strip() == "first"


@pytest.mark.parametrize("columns", [{"status": "cancelled"}, {"id": "../x"}, {"id": ""}])
def test_the_table_takes_no_nonsense(database, columns):
    done = database(insert(columns.pop("id", "c"), **columns))
    assert "violates check constraint" in done.stderr


def test_a_user_reads_only_the_own_jobs_and_writes_none(database):
    database(insert("of-ada"), insert("of-ben", user=BEN))
    as_ben = ("set role authenticated", f"set request.sub = '{BEN}'")
    assert database(*as_ben, "select id from jobs where id like 'of-%'").stdout.strip() == "of-ben"
    assert "row-level security" in database(*as_ben, insert("forged", user=BEN)).stderr
    assert database(*as_ben, "update jobs set status = 'completed' where id = 'of-ben' returning id").stdout.strip() == ""
