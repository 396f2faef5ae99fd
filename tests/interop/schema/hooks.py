"""What schemathesis makes up waits no longer than a moment."""

import schemathesis

WAIT = "0.1s"


@schemathesis.hook
def map_query(_, query):
    return query | {"wait": WAIT} if query and "wait" in query else query


@schemathesis.hook
def map_body(context, body):
    is_wait = context.operation.path == "/v1/WaitTask"
    return body | {"timeout": WAIT} if is_wait and isinstance(body, dict) and "timeout" in body else body
