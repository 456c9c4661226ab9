"""The listener hands every answer to the network at once."""

import http.client
import time

from tests.end_to_end.conftest import Site


def test_answers_on_a_kept_connection_do_not_wait_for_the_clients_acknowledgement(tmp_path, plugins):
    with Site(tmp_path, plugins) as site:
        connection = http.client.HTTPConnection("127.0.0.1", site.start().port())
        taken = []
        for _ in range(21):
            started = time.perf_counter()
            connection.request("GET", "/health")
            connection.getresponse().read()
            taken.append(time.perf_counter() - started)
        connection.close()
    assert min(taken[1:]) < 0.03, "40 ms is what a client's kernel waits before it acknowledges"
