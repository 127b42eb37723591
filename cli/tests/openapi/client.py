"""Reads the description of a replica's listener and believes it: it is valid, each of its examples is taken, and each answer is one that it describes.

Usage: client.py ADDRESS KEY [--calls N]: N examples with a body at least have to be there.
"""

import argparse
import copy
import gzip
import http.client
import json
import re
import sys
import urllib.parse

from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

BASE = "urn:description"
# What HTTP itself says of a body and a connection; OpenAPI has other places for it, or none.
HTTP = {"connection", "content-length", "content-type", "date", "transfer-encoding"}
# Sent wherever they are described, so that what an answer says of them is seen.
SENT = {"x-ms-client-request-id": "client-1", "traceid": "trace-1", "endpoint-load-metrics-format": "TEXT", "accept-encoding": "gzip"}
# What has to be seen at least once where it is described: it comes with whatever is sent above.
COMES = {"x-request-id", "x-ms-request-id", "x-ms-client-request-id", "traceid", "endpoint-load-metrics", "x-ms-server-version", "cache-control", "vary", "content-encoding"}


def strict(schema):
    """The same schema, where what it does not name is wrong: a member of an answer that nobody has described is found."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(value) for name, value in schema.items()}
    named = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    composed = "allOf" in schema or "oneOf" in schema
    if named and not composed and "additionalProperties" not in schema:
        made["additionalProperties"] = False
    return made


class Listener:
    def __init__(self, address, key):
        self.address, self.key = address, key
        self.seen, self.told = set(), set()
        status, _, body = self.send("GET", "/openapi.json", secured=True)
        assert status == 200, (status, body)
        self.document = json.loads(body)
        described = copy.deepcopy(self.document)
        described["components"]["schemas"] = strict(described["components"]["schemas"])
        self.strict = described
        self.registry = Registry().with_resource(BASE, Resource.from_contents(described, default_specification=DRAFT202012))

    def send(self, method, path, headers=None, body=None, secured=False):
        connection = http.client.HTTPConnection(self.address, timeout=60)
        headers = dict(headers or {})
        if secured:
            headers["Authorization"] = f"Bearer {self.key}"
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        # What has no end is not read to it.
        whole = b"" if "event-stream" in (answer.getheader("content-type") or "") else answer.read()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        connection.close()
        if headers.get("content-encoding") == "gzip":
            whole = gzip.decompress(whole)
        return answer.status, headers, whole

    def resolved(self, value):
        while isinstance(value, dict) and "$ref" in value:
            at = self.document
            for step in value["$ref"].removeprefix("#/").split("/"):
                at = at[step.replace("~1", "/").replace("~0", "~")]
            value = at
        return value

    def check(self, schema, value, place):
        anchored = json.loads(json.dumps(strict(schema)).replace('"#/', f'"{BASE}#/'))
        validator = Draft202012Validator(anchored, registry=self.registry)
        wrong = [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in validator.iter_errors(value)]
        assert not wrong, (place, wrong, str(value)[:600])

    def operations(self):
        for path, item in self.document["paths"].items():
            for method, operation in item.items():
                yield path, method, operation

    def call(self, shown_path, method, operation):
        """Sends what the operation shows; whether there was a body to send."""
        path, headers, query = shown_path, {}, {}
        for parameter in map(self.resolved, operation.get("parameters", [])):
            example = parameter.get("example")
            if example is None and parameter.get("required"):
                return False
            if parameter["in"] == "path":
                path = path.replace("{%s}" % parameter["name"], urllib.parse.quote(example, safe=""))
            elif parameter["in"] == "header" and parameter["name"].lower() in SENT:
                headers[parameter["name"]] = SENT[parameter["name"].lower()]
            elif example is not None:
                (headers if parameter["in"] == "header" else query)[parameter["name"]] = str(example)
        if operation["tags"] == ["Description"]:
            headers["Accept-Encoding"] = SENT["accept-encoding"]
        body = None
        if "requestBody" in operation:
            content = operation["requestBody"]["content"]
            shown = [(media, of) for media, of in content.items() if "example" in of]
            if not shown:
                if operation["requestBody"].get("required"):
                    return False
            else:
                media, of = shown[0]
                self.check(of["schema"], of["example"], (path, method, "its own example"))
                headers["Content-Type"], body = media, json.dumps(of["example"])
        place = f"{method.upper()} {path}"
        secured = operation.get("security", self.document.get("security", [])) != []
        answer = self.send(method.upper(), path + ("?" + urllib.parse.urlencode(query) if query else ""), headers, body, secured)
        self.answered(place, operation, *answer)
        assert answer[0] < 300, (place, answer)
        for name in {"x-ms-client-request-id", "traceid"} & {name.lower() for name in headers}:
            assert answer[1].get(name) == SENT[name], (place, name, answer[1])
        if secured and operation["tags"] != ["gRPC"]:
            # The same without a key is refused, as is described.
            refused = self.send(method.upper(), path, headers, body)
            assert refused[0] == 401, (place, refused)
            self.answered(place, operation, *refused)
            self.wrong(path, method, operation, headers, body)
        return body is not None

    def wrong(self, path, method, operation, headers, body):
        """What is wrong with a request is answered as is described, too, and not with a good answer."""
        names = {parameter["name"] for parameter in map(self.resolved, operation.get("parameters", []))}
        mistakes = {
            "X-Request-Id": "x" * 300,
            "x-ms-request-id": "x" * 300,
            "x-ms-client-request-id": "x" * 300,
            "X-Request-Deadline-Ms": "soon",
            "X-Request-Priority": "highest",
            "Inference-Header-Content-Length": "1" * 12,
            "Content-Encoding": "br",
        }
        # Of one that describes a model the deadline is read where that model has to be loaded.
        describes = set(operation["tags"]) & {"Metadata", "Description"}
        tried = [(path, {**headers, name: value}, body, not (describes and "Deadline" in name)) for name, value in mistakes.items() if name in names]
        if {"$ref": "#/components/parameters/model"} in operation.get("parameters", []):
            example = urllib.parse.quote(self.resolved({"$ref": "#/components/parameters/model"})["example"], safe="")
            tried.append((path.replace(example, "no-such-model", 1), headers, body, True))
        if body is not None and "application/json" in operation["requestBody"]["content"]:
            # There are scripts and bodies without a member that is needed which take anything that is JSON.
            wrong = {'{"': True, "[1, 2]": False, '"text"': False, '{"inputs": 1, "instances": 2, "parameters": 3}': False}
            tried.extend((path, headers, body, refused) for body, refused in wrong.items())
            tried.append((path, {**headers, "Content-Length": str(1 << 40)}, body, True))
        for path, headers, body, refused in tried:
            answer = self.send(method.upper(), path, headers, body, True)
            place = f"{method.upper()} {path} {headers} {body}"[:300]
            assert answer[0] >= 400 or not refused, (place, "is not refused", answer)
            self.answered(place, operation, *answer)

    def answered(self, place, operation, status, headers, body):
        described = operation["responses"].get(str(status)) or operation["responses"].get("default")
        assert described, (place, status, "is not described", body[:300])
        described = self.resolved(described)
        named = {name.lower() for name in described.get("headers", {})}
        self.told |= named
        self.seen |= headers.keys()
        # Who else may answer has headers and bodies of its own.
        free = "default" in operation["responses"]
        unnamed = headers.keys() - named - HTTP
        assert free or not unnamed, (place, status, unnamed, "are not described")
        for name, header in described.get("headers", {}).items():
            header, value = self.resolved(header), headers.get(name.lower())
            assert value is not None or not header.get("required"), (place, status, name)
            if value is not None and "enum" in header["schema"]:
                assert value in header["schema"]["enum"], (place, status, name, value)
        content = described.get("content")
        if not content:
            assert free or not body, (place, status, body[:300], "is a body that is not described")
            return
        media = headers.get("content-type", "").split(";")[0]
        assert media in content or "*/*" in content, (place, status, media, list(content))
        if not body:
            # To HEAD the same is said without it.
            assert media != "application/json" or place.startswith("HEAD "), (place, status, "has no body")
            return
        if media == "application/json" and media in content:
            self.check(content[media]["schema"], json.loads(body), (place, status))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("key")
    parser.add_argument("--calls", type=int, default=0)
    asked = parser.parse_args()
    listener = Listener(asked.address, asked.key)
    document = listener.document
    OpenAPIV31SpecValidator(document).validate()
    for name, schema in document["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name), name
    names = {tag["name"] for tag in document["tags"]}
    ids = [operation["operationId"] for _, _, operation in listener.operations()]
    assert len(ids) == len(set(ids)), ids
    calls = 0
    # What takes something away comes last.
    last = ("unload", "unregister")
    for path, method, operation in sorted(listener.operations(), key=lambda of: (of[1] == "delete" or of[0].endswith(last), of[0], of[1] == "get")):
        assert set(operation["tags"]) <= names and operation["summary"], operation
        if operation["tags"] == ["gRPC"]:
            continue
        calls += listener.call(path, method, operation)
    assert calls >= asked.calls, f"{calls} examples with a body"
    never = COMES & listener.told - listener.seen
    assert not never, (never, "are described and never come")
    print(f"{len(ids)} operations, {calls} examples with a body")


if __name__ == "__main__":
    sys.exit(main())
