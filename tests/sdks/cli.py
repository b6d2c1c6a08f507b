"""A service that runs the AWS CLI, anew for every call: for each line of standard input
it calls AWS, and tells what came of it. See tests/it/sdks.rs."""

import json
import os
import subprocess
import sys


def aws(*args):
    # In its version 1 some services do not look at the variable.
    endpoint = ["--endpoint-url", os.environ["AWS_ENDPOINT_URL"]]
    return subprocess.run(["aws", *endpoint, *args], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True)


def call():
    allowed = aws("sqs", "list-queues")
    if allowed.returncode != 0:
        return {"failed": allowed.stderr}
    denied = aws("sqs", "create-queue", "--queue-name", "not-allowed")
    identity = aws("sts", "get-caller-identity", "--query", "Arn", "--output", "text")
    return {"as": identity.stdout.strip(), "denied": denied.stderr}


for _ in sys.stdin:
    print(json.dumps(call()), flush=True)
