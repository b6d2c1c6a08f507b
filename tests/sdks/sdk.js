// A service that uses the AWS SDK for JavaScript, as anybody would: for each line of
// standard input it calls AWS, and tells what came of it. See tests/it/sdks.rs.

const readline = require("node:readline");
const { SQSClient, ListQueuesCommand, CreateQueueCommand } = require("@aws-sdk/client-sqs");
const { STSClient, GetCallerIdentityCommand } = require("@aws-sdk/client-sts");

const sqs = new SQSClient({});
const sts = new STSClient({});

const text = (error) => `${error.name}: ${error.message}`;

async function call() {
  try {
    await sqs.send(new ListQueuesCommand({}));
  } catch (error) {
    return { failed: text(error) };
  }
  let denied = "";
  try {
    await sqs.send(new CreateQueueCommand({ QueueName: "not-allowed" }));
  } catch (error) {
    denied = text(error);
  }
  const { Arn } = await sts.send(new GetCallerIdentityCommand({}));
  return { as: Arn, denied };
}

(async () => {
  for await (const _ of readline.createInterface({ input: process.stdin })) {
    console.log(JSON.stringify(await call()));
  }
})();
