"""Keeps the history and the last state of each entity, from the event bus `<environment>-events`.

A bus keeps no order and delivers an event more than once at times. A rule sends the events to a queue, and the queue
calls this function:

- Repeats: each event is a row with its event id as the key, and a row is put only if it does not exist.
- Order: the row of the entity has the sequence of the last applied event. Both rows are written in one transaction, which
  fails unless the event is the next one.
- An early event goes back to the queue, which delivers it again later. If it is still early then, the function asks the
  API for the missing events.
"""

import json
import os
import urllib.parse
import urllib.request

import boto3


class Table:
    """A DynamoDB table with the partition key `id`: a row for each event, and one for each entity."""

    def __init__(self, client, name):
        self.client, self.name = client, name

    def last_sequence(self, entity):
        """Returns the sequence of the last applied event of an entity, or 0."""
        row = self.client.get_item(
            TableName=self.name, Key={"id": {"S": f"entity#{entity}"}}, ConsistentRead=True
        ).get("Item", {})
        return int(row.get("lastSequence", {"N": "0"})["N"])

    def apply(self, entity, event):
        """Applies the next event of an entity. Returns False if it is not the next one, or was applied before."""
        metadata, text = event["metadata"], json.dumps(event)
        sequence = metadata["sequence"]
        values = {":sequence": {"N": str(sequence)}, ":event": {"S": text}}
        if sequence == 1:
            condition = "attribute_not_exists(id)"
        else:
            condition = "lastSequence = :previous"
            values[":previous"] = {"N": str(sequence - 1)}
        try:
            self.client.transact_write_items(TransactItems=[
                {"Put": {
                    "TableName": self.name,
                    "Item": {"id": {"S": f"event#{metadata['eventId']}"}, "entity": {"S": entity}, "event": {"S": text}},
                    "ConditionExpression": "attribute_not_exists(id)",
                }},
                {"Update": {
                    "TableName": self.name,
                    "Key": {"id": {"S": f"entity#{entity}"}},
                    "UpdateExpression": "SET lastSequence = :sequence, lastEvent = :event",
                    "ConditionExpression": condition,
                    "ExpressionAttributeValues": values,
                }},
            ])
        except self.client.exceptions.TransactionCanceledException as error:
            reasons = {reason["Code"] for reason in error.response["CancellationReasons"]}
            if "ConditionalCheckFailed" in reasons:
                return False
            raise  # a conflict with another transaction, for example; the queue delivers the event again
        return True


class Api:
    """Fieldstation's HTTP API, with a key that may read."""

    def __init__(self, url, key):
        self.url, self.key = url, key

    def events_after(self, entity, sequence):
        """Yields the events of `<type>/<id>` that follow this sequence, in order."""
        query = {"entity": entity, "after": sequence}
        while query:
            request = urllib.request.Request(
                f"{self.url}/events?{urllib.parse.urlencode(query)}", headers={"Authorization": f"Bearer {self.key}"}
            )
            with urllib.request.urlopen(request, timeout=5) as response:
                page = json.load(response)
            yield from page["events"]
            token = page.get("nextPageToken")
            query = token and {"entity": entity, "after": sequence, "pageToken": token}


def key_of(metadata):
    """Returns the key of an entity. Entities of other systems have a type with a dot. Two operators may use the same
    type and id for such entities, so the key then contains the operator."""
    entity = f"{metadata['entity']['type']}/{metadata['entity']['id']}"
    return f"{metadata['operatorId']}/{entity}" if "." in metadata["entity"]["type"] else entity


def consume(event, came_again, table, api):
    """Applies an event. Returns False if it is early and has to come again."""
    metadata = event["metadata"]
    entity = key_of(metadata)
    last = table.last_sequence(entity)
    if metadata["sequence"] <= last:
        return True  # a repeat
    if metadata["sequence"] == last + 1:
        return table.apply(entity, event)
    if not came_again:
        return False
    for missing in api.events_after(f"{metadata['entity']['type']}/{metadata['entity']['id']}", last):
        if missing["metadata"]["sequence"] > metadata["sequence"] or not table.apply(entity, missing):
            break
    return table.last_sequence(entity) >= metadata["sequence"]


def handle_batch(batch, table, api):
    """Consumes the messages of a batch. Returns those that the queue has to deliver again."""
    messages = [(json.loads(message["body"])["detail"], message) for message in batch["Records"]]
    messages.sort(key=lambda pair: pair[0]["metadata"]["sequence"])
    failures = []
    for event, message in messages:
        came_again = int(message["attributes"]["ApproximateReceiveCount"]) > 1
        try:
            done = consume(event, came_again, table, api)
        except Exception as error:  # only this message fails; after five attempts the queue moves it to the dead letters
            print(f"{event['metadata']['eventId']} failed: {error!r}")
            done = False
        if not done:
            failures.append({"itemIdentifier": message["messageId"]})
    return {"batchItemFailures": failures}


_dependencies = []


def handler(batch, _context):
    """The entry point. The clients are created once in an execution environment."""
    if not _dependencies:
        secret = boto3.client("secretsmanager").get_secret_value(SecretId=os.environ["API_KEY_SECRET"])
        _dependencies.extend((
            Table(boto3.client("dynamodb"), os.environ["TABLE"]),
            Api(os.environ["API_URL"], secret["SecretString"]),
        ))
    return handle_batch(batch, *_dependencies)
