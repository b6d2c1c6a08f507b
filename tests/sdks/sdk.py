"""A service that uses boto3, as anybody would: for each line of standard input it calls
AWS, and tells what came of it. See tests/it/sdks.rs."""

import functools
import json
import sys

import boto3


@functools.cache
def client(service):
    """Made at the first call: boto3 gets the credentials when it makes a client."""
    return boto3.client(service)


def call():
    try:
        client("sqs").list_queues()
    except Exception as error:
        return {"failed": str(error)}
    try:
        client("sqs").create_queue(QueueName="not-allowed")
        denied = ""
    except Exception as error:
        denied = str(error)
    return {"as": client("sts").get_caller_identity()["Arn"], "denied": denied}


for _ in sys.stdin:
    print(json.dumps(call()), flush=True)
