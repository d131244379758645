#!/usr/bin/env python3
"""Writes protobuf.txt: the field numbers of every property in schema.txt.

Usage: protobuf.py FOLDER, which holds api, apimachinery, apiextensions-apiserver and kube-aggregator as Go's `k8s.io` does.
The numbers are facts read off their generated.proto files. A message that JSON shows inlined in its parent is one of its own
there: its properties have paths of two numbers (`2.5`).
"""
import os, re, sys

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGES = {"api": "io.k8s.api.", "apimachinery": "io.k8s.apimachinery.",
            "apiextensions-apiserver": "io.k8s.apiextensions-apiserver.", "kube-aggregator": "io.k8s.kube-aggregator."}

def plain(name):
    return re.sub("[^a-z0-9]", "", name.lower())

structs = {}  # definition -> {plain name: (tag, type)}
for root, _, files in os.walk(sys.argv[1]):
    if "generated.proto" not in files:
        continue
    start, _, rest = os.path.relpath(root, sys.argv[1]).partition("/")
    package = PACKAGES[start] + rest.replace("/", ".")
    text = re.sub(r"//.*", "", open(os.path.join(root, "generated.proto")).read())
    for name, body in re.findall(r"\nmessage (\w+) \{(.*?)\n\}", text, re.S):
        fields = re.findall(r"(?:optional|repeated)?\s*([\w.]+|map<[^>]*>) (\w+) = (\d+);", body)
        structs[package + "." + plain(name)] = {plain(field): (tag, kind.rpartition(".")[2]) for kind, field, tag in fields}

schema, name = {}, None
for line in open(os.path.join(HERE, "schema.txt")):
    if line.startswith("io."):
        name = line.split()[0]
        schema[name] = []
    else:
        schema[name].append(line.split()[0])

with open(os.path.join(HERE, "protobuf.txt"), "w") as out:
    missing = []
    for name, properties in sorted(schema.items()):
        package, _, struct = name.rpartition(".")
        fields = structs.get(package + "." + plain(struct))
        if fields is None:
            missing.append(name)
            continue
        wanted = {plain(p): p for p in properties}
        found = {wanted[f]: tag for f, (tag, _) in fields.items() if f in wanted}
        # What isn't a property by its own name is inlined.
        def inline(fields, prefix, depth=0):
            for field, (tag, kind) in fields.items():
                inner = structs.get(package + "." + plain(kind))
                if field in wanted or inner is None or depth > 1:
                    continue
                for f, (t, _) in inner.items():
                    if f in wanted:
                        found.setdefault(wanted[f], f"{prefix}{tag}.{t}")
                inline(inner, f"{prefix}{tag}.", depth + 1)
        inline(fields, "")
        missing += [f"{name}.{p}" for p in properties if p not in found and p not in ("kind", "apiVersion")]
        if found:
            out.write(name + " " + " ".join(f"{p}={t}" for p, t in sorted(found.items())) + "\n")
    print("without a number:", *missing, sep="\n ")
