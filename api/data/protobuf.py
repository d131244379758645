#!/usr/bin/env python3
"""Writes protobuf.txt: the field numbers of every property in schema.txt.

Usage: protobuf.py K8S_PB_SRC. The numbers are facts read off the tags of the k8s-pb crate's structs. A struct that JSON
shows inlined in its parent is a message of its own there: its properties have paths of two numbers (`2.5`).
"""
import os, re, sys

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGES = [("api/", "io.k8s.api."), ("apimachinery/", "io.k8s.apimachinery."),
            ("apiextensions_apiserver/", "io.k8s.apiextensions-apiserver."), ("kube_aggregator/", "io.k8s.kube-aggregator.")]

def plain(name):
    return re.sub("[^a-z0-9]", "", name.lower())

structs = {}  # definition -> {plain name: (tag, type)}
for root, _, files in os.walk(sys.argv[1]):
    for file in files:
        path = os.path.relpath(os.path.join(root, file), sys.argv[1])
        package = next((to + path[len(start):] for start, to in PACKAGES if path.startswith(start)), None)
        if package is None:
            continue
        package = package.removesuffix("/mod.rs").removesuffix(".rs").replace("/", ".")
        text = open(os.path.join(root, file)).read()
        for name, body in re.findall(r"\npub struct (\w+) \{(.*?)\n\}", text, re.S):
            fields = {}
            for tag, ident, kind in re.findall(r'tag ?= ?"(\d+)"[^\]]*\]\s*pub (?:r#)?(\w+):\s*(.*?),\s*(?=///|#\[|$)', body, re.S):
                kind = re.sub(r"\s", "", kind)
                inner = re.findall(r"([A-Z]\w+)[>,]*$", kind.rstrip(">"))
                fields[plain(ident)] = (tag, inner[0] if inner else "")
            structs[package + "." + plain(name)] = fields

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
