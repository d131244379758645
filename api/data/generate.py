#!/usr/bin/env python3
"""Derives the tables of this folder from reference data; run by hand when the Kubernetes version changes.

    generate.py SPEC API APIMACHINERY APIEXTENSIONS AGGREGATOR

SPEC is the folder of reference tables (resources.tsv, etcd-keys.tsv, field-selectors.tsv, columns.tsv, groups.tsv,
discovery.json, defaults.tsv, merge.tsv and upstream's openapi-v2.json). The others are git repositories of upstream's Go types
(k8s.io/api and so on). Only facts are taken: names, types, and from the Go types whether a field is a pointer and
whether it is written when empty. Fields come from openapi-v2.json alone, so newer Go types do no harm.

What each table holds is said in the Rust module that reads it: resource.rs, print/mod.rs, schema/builtin.rs.
"""
import csv, json, pathlib, re, subprocess, sys

SPEC = pathlib.Path(sys.argv[1])
REPOS = dict(zip(("k8s.io.api", "apimachinery", "apiextensions", "aggregator"), sys.argv[2:6]))
HERE = pathlib.Path(__file__).parent

def table(name):
    return list(csv.DictReader(open(SPEC / name), delimiter="\t", quoting=csv.QUOTE_NONE))

def write(name, header, rows):
    with open(HERE / name, "w") as out:
        out.write("# " + "\t".join(header) + "\n")
        for row in rows:
            out.write("\t".join(row).rstrip("\t") + "\n")

openapi = json.load(open(SPEC / "openapi-v2.json"))["definitions"]
by_kind = {}
for name, d in openapi.items():
    for gvk in d.get("x-kubernetes-group-version-kind", []):
        by_kind.setdefault((gvk["group"], gvk["version"], gvk["kind"]), name)

# resources.tsv and columns.tsv ---------------------------------------------------------------------------------------
# Paths are those of the stored version.
FIELD_PATHS = {
    ("events", "source"): "source.component:.reportingComponent", ("events", "reportingController"): "reportingComponent",
    **{("events", f"regarding.{f}"): f"involvedObject.{f}" for f in ("apiVersion", "fieldPath", "kind", "name", "namespace", "resourceVersion", "uid")},
    ("jobs", "status.successful"): "status.succeeded:0",
    ("pods", "spec.host"): "spec.nodeName", ("pods", "spec.hostNetwork"): "spec.hostNetwork:false",
    ("nodes", "spec.unschedulable"): "spec.unschedulable:false", ("replicationcontrollers", "status.replicas"): "status.replicas:0",
}
keys = {(r["group"], r["version"], r["resource"]): r for r in table("etcd-keys.tsv")}
selectors = {}
for r in table("field-selectors.tsv"):
    s = selectors.setdefault((r["group"], r["version"], r["resource"]), ([], r["error_for_other_labels"]))
    if not r["field_label"].startswith("metadata."):
        path = FIELD_PATHS.get((r["resource"], r["field_label"]))
        s[0].append(r["field_label"] + ("=" + path if path else ""))

order = {}
groups = table("groups.tsv")
for i, g in enumerate(groups):
    for j, v in enumerate(g["versions_default"].split(",")):
        order[(g["group"], v)] = (i, j)
listed = {}
for gv, body in json.load(open(SPEC / "discovery.json"))["default"]["lists"].items():
    for i, r in enumerate(body["resources"]):
        group, _, version = gv.rpartition("/")
        listed[(group, version, r["name"])] = i

rows = []
for r in table("resources.tsv"):
    if r["on_by_default"] != "yes":
        continue
    id = (r["group"], r["version"], r["plural"])
    subs = [s for s in r["subresources"].split("; ") if s and "off by default" not in s]
    key = keys.get(id, {})
    fields, error = selectors.get(id, ([], ""))
    if error.startswith('"<label>" is not'):
        error = ""
    stored = "" if r["stored_as"] == "-" else r["stored_as"]
    if r["kind"] == "CustomResourceDefinition":
        stored = "apiextensions.k8s.io/v1"  # upstream stores the older form for the sake of downgrades
    rows.append((order[id[:2]], listed[id], [
        r["group"], r["version"], r["kind"], r["plural"], r["singular"], "n" if r["namespaced"] == "true" else "c",
        r["short_names"], r["categories"], r["verbs"], ";".join(subs), stored, key.get("prefix", ""),
        r["storage_version_hash"], ",".join(fields), error, by_kind[(r["group"], r["version"], r["kind"])]]))
rows.sort(key=lambda r: r[:2])
write("resources.tsv", ["group", "version", "kind", "plural", "singular", "scope", "short names", "categories", "verbs",
      "subresources", "stored as", "storage prefix", "storage version hash", "selectable fields", "error for other fields",
      "definition"], [r[2] for r in rows])
served = {tuple(r[2][i] for i in (0, 1, 3)) for r in rows}

CONTAINERS = {"cronjobs": "spec.jobTemplate.spec.template.spec.containers", "podtemplates": "template.spec.containers"}

def cell(r):
    """The rule of a column in the notation of print/mod.rs; `!` where it takes a function."""
    rule, path = r["value"], r"([\w.]+(?:\.[\w]+)*)"
    containers = CONTAINERS.get(r["resource"], "spec.template.spec.containers")
    if re.match(r"(container )?names( of the same containers)?( ?\(C\)| of \S*containers)|container names", rule):
        return "names:" + containers
    if re.match(r"images\(C\)|images of", rule):
        return "images:" + containers
    if m := re.match(r"labels\((\S+)\):", rule):
        return "labels:" + m[1]
    if m := re.match(r"labelSelector\((\S+)\):", rule):
        return "selector:" + m[1]
    if m := re.fullmatch(rf"age\({path}\)( or \"(<none>)\")?", rule):
        return "age:" + m[1] + ("|" + m[3] if m[3] else "")
    if rule == "metadata.creationTimestamp as RFC 3339 UTC text":
        return "time:metadata.creationTimestamp"
    if m := re.fullmatch(rf"number of (?:keys in |){path}(?: entries|) \(integer\)", rule):
        return "count:" + m[1]
    if m := re.fullmatch(rf"{path} \(integer(?:, 0 if absent)?\)(?: or \"(<none>)\".*)?", rule):
        return "int:" + m[1] + ("|" + m[2] if m[2] else "")
    if m := re.fullmatch(rf"{path} \(boolean(?:, (true|false) when absent)?\)", rule):
        return "bool:" + m[1] + ("|true" if m[2] == "true" else "")
    if m := re.fullmatch(rf"{path} joined with \",\"(?: or \"(.*)\")?", rule):
        return "join:" + m[1] + ("|" + m[2] if m[2] else "")
    if m := re.fullmatch(rf"{path}(?: as text(?: \(int or percent\))?)? or \"(.*)\"", rule):
        return m[1] + "|" + m[2]
    if m := re.fullmatch(rf"{path}( or empty)?", rule):
        return ("int:" if r["type"] == "integer" else "") + m[1]
    return "!"

columns = []
for r in table("columns.tsv"):
    if (r["group"], r["version"], r["resource"]) in served:
        about = r["value"] if len(r["value"]) <= 100 else ""
        columns.append([r["group"], r["version"], r["resource"], r["name"], r["type"], r["format"], r["priority"], cell(r), about])
write("columns.tsv", ["group", "version", "resource", "name", "type", "format", "priority", "cell", "description"], columns)

# schema.txt ----------------------------------------------------------------------------------------------------------
def git(repo, *args):
    return subprocess.run(["git", "-C", repo, *args], check=True, capture_output=True, text=True).stdout

def go_packages():
    """(definition prefix, repository, folder) of every package with types."""
    for prefix, repo, top in (("io.k8s.api.", "k8s.io.api", ""),
                              ("io.k8s.apimachinery.pkg.apis.", "apimachinery", "pkg/apis/"),
                              ("io.k8s.apiextensions-apiserver.pkg.apis.", "apiextensions", "pkg/apis/"),
                              ("io.k8s.kube-aggregator.pkg.apis.", "aggregator", "pkg/apis/")):
        for f in git(REPOS[repo], "ls-tree", "-r", "--name-only", "HEAD").splitlines():
            if f.startswith(top) and re.search(r"/v\d\w*/[a-z_]*types[a-z_]*\.go$", f) and "_test" not in f:
                yield prefix + f[len(top):].rsplit("/", 1)[0].replace("/", "."), git(REPOS[repo], "show", "HEAD:" + f)

structs, kinds = {}, {}
for package, text in go_packages():
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    for m in re.finditer(r"^type (\w+) struct \{\n(.*?)^\}", text, re.M | re.S):
        fields = []
        for line in m[2].splitlines():
            line = re.sub(r"\s+//[^`]*$", "", line.split("`")[0]) + ("`" + line.split("`")[1] if "`" in line else "")
            f = re.match(r"\s*(?:(\w+)\s+)?([\w.*\[\]]+)\s*`(.*)", line)
            if not f or line.strip().startswith("//"):
                continue
            tag = re.search(r'json:"([^"]*)"', f[3])
            if tag:
                fields.append((f[1], f[2], tag[1].split(",")))
        structs[package + "." + m[1]] = fields
    for m in re.finditer(r"^type (\w+) (map\S+|\[\]\S+|string|bool|u?int\d*)", text, re.M):
        kinds[package + "." + m[1]] = m[2]

def go_fields(name, inlined=""):
    """JSON name -> (Go type, tag options, Go name, embedded struct) of a struct in its order, its inlined ones included."""
    out = {}
    package = name.rpartition(".")[0]
    for field, kind, tag in structs.get(name, []):
        if tag[0]:
            out[tag[0]] = (kind, tag[1:], field, inlined)
        else:
            base = kind.lstrip("*")
            within = "" if base.endswith("TypeMeta") else ".".join(filter(None, [inlined, base.split(".")[-1]]))
            if "." in base:
                alias, base = base.split(".")
                where = {"metav1": "io.k8s.apimachinery.pkg.apis.meta.v1", "v1": "io.k8s.api.core.v1"}.get(alias, alias)
                out.update(go_fields(where + "." + base, within))
            else:
                out.update(go_fields(package + "." + base, within))
    return out

SPECIAL = {"io.k8s.apimachinery.pkg.api.resource.Quantity": "quantity", "io.k8s.apimachinery.pkg.apis.meta.v1.Time": "time",
           "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime": "microtime", "io.k8s.apimachinery.pkg.util.intstr.IntOrString": "intstr",
           "io.k8s.apimachinery.pkg.runtime.RawExtension": "any", "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1": "any",
           "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON": "any",
           "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray": "schema|list",
           "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool": "schema|bool",
           "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray": "schema|strings"}
SCALAR = {("string", None): "string", ("string", "byte"): "bytes", ("boolean", None): "bool", ("number", "double"): "number",
          ("integer", "int32"): "int32", ("integer", "int64"): "int64"}
# Fields of features that are off by default, which the server drops.
OFF = {"core.v1.Lifecycle": "stopSignal",
       "core.v1.VolumeProjection": "clusterTrustBundle",
       "core.v1.PodSpec": "schedulingGroup",
       "apps.v1.RollingUpdateStatefulSetStrategy": "maxUnavailable",
       "core.v1.NodeSpec": "configSource",
       "resource.v1.Device": "nodeAllocatableResourceMappings",
       "coordination.v1.LeaseSpec": "strategy preferredHolder",
       "resource.v1.DeviceAttribute": "ints bools strings versions"}
need = []

def kind_of(s, go, package):
    """The type in the notation of schema.txt; a named Go type follows a colon."""
    go = (go or "").lstrip("*")
    if "$ref" in s:
        name = s["$ref"].rpartition("/")[2]
        if name in SPECIAL:
            return SPECIAL[name]
        need.append(name)
        return "@" + name
    if s.get("type") == "array":
        return "[]" + kind_of(s["items"], re.sub(r"^\[\]", "", go), package)
    if s.get("type") == "object":
        return "{}" + kind_of(s["additionalProperties"], re.sub(r"^map\[\w+\]", "", go), package) if "additionalProperties" in s else "any"
    scalar = SCALAR[(s.get("type"), s.get("format"))]
    if go and go not in ("string", "bool", "int32", "int64", "float64", "int", "byte", "[]byte"):
        go = go.split(".")[-1] if "." not in go or go.split(".")[0] not in ("types",) else go
        alias = "types" if go.startswith("types.") else package.rpartition(".")[2]
        if "ResourceName" in go or go == "UID":
            alias = "v1"
        scalar += ":" + ("types." + go[6:] if go.startswith("types.") else alias + "." + go)
    return scalar

defaults = {}
for r in table("defaults.tsv"):
    if r["source"] == "openapi-v3":
        defaults[(r["scope"], r["field"])] = json.dumps(json.loads(r["default"]), separators=(",", ":"))

merge = {}
for r in table("merge.tsv"):
    merge[(r["definition"], r["field"])] = r

def is_struct(s, go):
    """Whether Go writes it even with omitempty: a struct held by value."""
    return "$ref" in s and not go.startswith("*") and s["$ref"].rpartition("/")[2] in openapi \
        and SPECIAL.get(s["$ref"].rpartition("/")[2]) != "any" and not go.startswith(("[]", "map"))

def definition(name):
    package = name.rpartition(".")[0]
    lines, d, facts = [], openapi[name], go_fields(name)
    root = merge.get((name, "."), {})
    lines.append(name + (" atomic" if root.get("map_type") == "atomic" else ""))
    required = set(d.get("required", []))
    fields = d.get("properties", {})
    for field in [f for f in facts if f in fields] + sorted(f for f in fields if f not in facts):
        s, plain = fields[field], field[0].upper() + field[1:]
        if field not in facts:
            print("no Go field for", name, field, file=sys.stderr)
        go, tag, go_name, inlined = facts.get(field, ("*", ["omitempty"], plain, ""))
        words = [field, kind_of(s, go, package)]
        if go_name and go_name != plain:
            words.append("go=" + go_name)
        omits = "omitempty" in tag or "omitzero" in tag
        if go.startswith("*"):
            words.append("*")
        if not omits or (is_struct(s, go) and "omitzero" not in tag):
            words.append("!")
        if field in required:
            words.append("r")
        if (name, field) in defaults:
            words.append("default=" + defaults[(name, field)])
        m = merge.get((name, field), {})
        if m.get("list_type"):
            keys = ":" + m["list_map_keys"] if m.get("list_map_keys") else ""
            words.append("list=" + m["list_type"] + keys)
        if m.get("map_type"):
            words.append("map=" + m["map_type"])
        if m.get("patch_strategy"):
            words.append("patch=" + m["patch_strategy"] + (":" + m["patch_merge_key"] if m.get("patch_merge_key") else ""))
        if field in OFF.get(name.removeprefix("io.k8s.api."), "").split():
            words.append("off")
        if inlined:
            words.append("in=" + inlined)
        if s.get("type") == "object" and go in ("JSONSchemaDefinitions", "JSONSchemaDependencies"):
            words.append("type=v1." + go)
        lines.append(" " + " ".join(words))
    return lines

META = "io.k8s.apimachinery.pkg.apis.meta.v1."
need += [r[2][15] for r in rows] + [META + n for n in ("DeleteOptions", "Status", "ListMeta")]
for r in table("resources.tsv"):
    for sub in r["subresources"].split("; ") if r["on_by_default"] == "yes" else []:
        if m := re.match(r"\w+=(?:(?:([\w.]+)/)?(\w+)/)?(\w+)\(", sub):
            gvk = (m[1] or r["group"] if m[2] else r["group"], m[2] or r["version"], m[3])
            if gvk in by_kind:
                need.append(by_kind[gvk])
done, text = set(), []
while need:
    name = need.pop()
    if name not in done:
        done.add(name)
        text.append(definition(name))
with open(HERE / "schema.txt", "w") as out:
    out.write("\n".join("\n".join(lines) for lines in sorted(text)) + "\n")

# defaults.tsv --------------------------------------------------------------------------------------------------------
# Plain defaults only; those that look at other fields are functions in defaults.rs.
PACKAGES = {"apiextensions": "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.",
            "apiregistration": "io.k8s.kube-aggregator.pkg.apis.apiregistration."}
ALSO = {"Container": ["Container", "EphemeralContainer"], "Rule": ["RuleWithOperations", "NamedRuleWithOperations"]}
plain, left = [], []
for r in table("defaults.tsv"):
    if r["source"] != "defaulting" or "/v1 " not in r["scope"] and "/v2 " not in r["scope"]:
        continue
    group, _, struct = r["scope"].replace("/", " ", 1).partition(" ")
    version, _, struct = struct.partition(" ")
    condition = r["condition"].replace(" (schema default)", "").split(" (Rule")[0]
    value = r["default"].split(" (0")[0]
    simple = condition in ("absent", "empty", "0 or absent") and re.fullmatch(r'"?[\w./%*-]*"?|\{\}|\[Persistent\]', value)
    if not simple or any(c in r["field"] for c in "[(*"):
        left.append("\t".join(r.values()))
        continue
    if value == "[Persistent]":
        value = '["Persistent"]'
    if not re.fullmatch(r"-?\d+|true|false|\{\}|\[.*\]|\".*\"", value):
        value = json.dumps(value)
    for name in ALSO.get(struct, [struct]):
        definition_name = PACKAGES.get(group, "io.k8s.api." + group + ".") + version + "." + name
        if definition_name in done:
            plain.append([definition_name, r["field"], value])
CORE = "io.k8s.api.core.v1."
NO_EFFECT = [(CORE + "LocalObjectReference", "name"), (CORE + "ReplicationController", "spec.minReadySeconds")]
plain = [r for r in plain if (r[0], r[1]) not in NO_EFFECT and "{}." not in r[1]]
plain += [[CORE + "FileKeySelector", "optional", "false"], [CORE + "GRPCAction", "service", '""'], [CORE + "EndpointPort", "protocol", '"TCP"'],
          ["io.k8s.api.networking.v1.IngressClassParametersReference", "scope", '"Cluster"'],
          [PACKAGES["apiextensions"] + "v1.ServiceReference", "port", "443"],
          [PACKAGES["apiextensions"] + "v1.CustomResourceDefinitionSpec", "conversion", '{"strategy":"None"}']]
plain += [["io.k8s.api.storage.v1.CSIDriver", "spec." + f, "false"] for f in ("seLinuxMount",)]
plain.sort(key=lambda r: r[0])
write("defaults.tsv", ["definition", "field", "default"], plain)
if "-v" in sys.argv:
    print("\n".join(left))
