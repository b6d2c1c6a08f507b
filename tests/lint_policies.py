"""Lints the policy documents on standard input, a JSON object of name and document,
and prints a line `NAME ISSUE DETAIL` per finding."""

import json
import sys

from parliament import analyze_policy_string

for name, document in json.load(sys.stdin).items():
    for finding in analyze_policy_string(json.dumps(document)).findings:
        print(name, finding.issue, json.dumps(finding.detail))
