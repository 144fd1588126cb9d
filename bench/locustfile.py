"""Users of the service, all at once: `make load URL=http://127.0.0.1:8080 SECONDS=30 USERS=8`.

They send drawn pictures and look at everything else now and then, without a pause in between. An answer with the wrong
content is a failure, and so is every status but 200, with one exception: a full service may answer 503 and say with
Retry-After when to come back. That is counted on a line of its own, and the user waits as asked. Locust prints the
table at the end, and its exit status is 1 after any failure.
"""

import json
from io import BytesIO
from random import choice

import gevent
from locust import FastHttpUser, constant, events, task
from locust.env import Environment

from trashsorting.data.sample import DRAW, draw_picture
from trashsorting.serving.client import encode_form

LONGEST_WAIT = 10.0  # Seconds that a user waits at most when asked to come back later


def form(label: str, size: tuple[int, int]) -> dict:
    """A request's body with one drawn picture, and its header, made once."""
    stream = BytesIO()
    draw_picture(label, 0, (512, 384)).resize(size).save(stream, "JPEG", quality=90)
    body, kind = encode_form("file", [stream.getvalue()])
    return {"data": body, "headers": {"content-type": kind}}


SMALL = [form(label, (512, 384)) for label in DRAW]
LARGE = [form("glass", (4000, 3000))]
gevent.get_hub().loop.update_now()  # Or the time that the drawing took would be taken off the run's.


def insist(fine: bool, otherwise: str) -> None:
    """Raise `ValueError` with these words unless all is well."""
    if not fine:
        raise ValueError(otherwise)


def check_prediction(said: dict) -> None:
    """A class, and probabilities that sum to 1."""
    shares = said["all_probabilities"]
    insist(abs(sum(shares.values()) - 1) < 1e-6, "the probabilities do not sum to 1")
    insist(shares[said["predicted_class"]] == said["confidence"], "the confidence is not the class's probability")


class Somebody(FastHttpUser):
    """A user who never pauses."""

    wait_time = constant(0)
    connection_timeout = network_timeout = 60.0
    explains = True

    def ask(self, method: str, path: str, name: str, check=None, **request) -> None:
        """Send a request and judge its answer; wait when the service asks for it."""
        wait = None
        with self.client.request(method, path, name=name, catch_response=True, **request) as answer:
            try:
                if answer.status_code == 503 and "retry-after" in answer.headers:
                    wait = float(answer.headers["retry-after"])
                    answer.request_meta["name"] = f"{name}: 503, come back later"
                    answer.success()
                elif answer.status_code != 200:
                    answer.failure(f"status {answer.status_code}: {(answer.text or '')[:200]}")
                elif check:
                    check(json.loads(answer.text))
            except (KeyError, TypeError, ValueError) as fault:
                answer.failure(f"wrong answer: {fault!r}")
        if wait is not None:
            gevent.sleep(min(wait, LONGEST_WAIT))

    def on_start(self) -> None:
        """Do everything once, so that the shortest run has seen all of it, and learn whether the model can explain."""
        for one in dict.fromkeys([Somebody.model_info, *self.tasks]):
            one(self)

    @task(12)
    def predict(self) -> None:
        self.ask("POST", "/api/predict", "predict", check_prediction, **choice(SMALL))  # noqa: S311

    @task(1)
    def predict_large(self) -> None:
        self.ask("POST", "/api/predict", "predict, 12 MP", check_prediction, **choice(LARGE))  # noqa: S311

    @task(2)
    def explain(self) -> None:
        def check(said: dict) -> None:
            check_prediction(said["prediction"])
            insist(max(map(max, said["heat"])) > 0, "no part of the picture decided")

        if self.explains:
            self.ask("POST", "/api/explain", "explain", check, **choice(SMALL))  # noqa: S311

    @task(3)
    def health(self) -> None:
        def check(said: dict) -> None:
            insist(said["status"] == "ok", f"health says {said}")

        self.ask("GET", "/api/health", "health", check)

    @task(1)
    def model_info(self) -> None:
        def remember(said: dict) -> None:
            self.explains = said["explains"]

        self.ask("GET", "/api/model/info", "model info", remember)

    @task(1)
    def page(self) -> None:
        self.ask("GET", "/", "page")


@events.quitting.add_listener
def judge(environment: Environment, **_) -> None:
    """No answer at all is no success either."""
    if not environment.stats.total.num_requests:
        environment.process_exit_code = 1
