//! Expressions and what upstream makes of them.

use serde_json::{Value, json};

use super::*;
use crate::field;

fn object() -> Value {
    json!({"name": "x", "n": 3, "list": [3, 1, 2], "map": {"a": 1, "b": 2}, "nested": {"deep": ["p", "q"]}, "none": null, "f": 1.5})
}

fn env() -> Env {
    Env::default().with("object", Type::Dyn)
}

fn run(source: &str) -> Result<Value, String> {
    let object = object();
    let program = Program::compile(&env(), source)?;
    let given = [("object", Val::json(&object, &Type::Dyn))];
    program.eval(&&given[..]).0.map_err(|f| f.to_string())?.to_json()
}

fn check(source: &str, expected: Value) {
    let got = match run(source) {
        Ok(value) => value,
        Err(why) => Value::from(format!("error: {why}")),
    };
    assert_eq!(got, expected, "{source}");
}

#[test]
fn the_language() {
    check("1 + 2 * 3 - 4 / 2 % 3", json!(5));
    check("-(3) + -2", json!(-5));
    check("!true || false && true", json!(false));
    check("true ? 1 : 2", json!(1));
    check("1u + 2u == 3u", json!(true));
    check("0x1F + 1", json!(32));
    check("1.5e3 + .5", json!(1500.5));
    check(r#"'a\n\x41\u00e9\101' + r'\n' + """q"u""""#, json!("a\nAéA\\nq\"u"));
    check("b'abc' == bytes('abc')", json!(true));
    check("[1, 2, 3][1] + {'a': 5}['a']", json!(7));
    check("1 in [1, 2] && 'a' in {'a': 1} && !(3 in [1])", json!(true));
    check("object.nested.deep[0] + object.name", json!("px"));
    check("has(object.name) && !has(object.missing) && !has(object.nested.x)", json!(true));
    check("object.n > 2.5 && object.n < 4u && 1 < 2.0", json!(true));
    check("'a' < 'b' && [1] == [1] && {'a': 1} != {'a': 2}", json!(true));
    check("type(1) == int && type('a') == string && type([]) == list && type(null) == null_type", json!(true));
    check("object.none == null && has(object.none) && !has(object.none.x) && !object.?none.?x.hasValue()", json!(true));
    check("false && (1 / 0 == 1) || true || (1 / 0 == 1)", json!(true));
    check("(1 / 0 == 1) || true", json!(true));
    check("1 / 0", json!("error: division by zero"));
    check("9223372036854775807 + 1", json!("error: integer overflow"));
    check("-9223372036854775808", json!(i64::MIN));
    check("object.missing", json!("error: no such key: missing"));
    check("object.list[5]", json!("error: index out of bounds: 5"));
    check("object.name + 1", json!("error: no such overload"));
}

#[test]
fn macros() {
    check("object.list.all(x, x > 0) && object.list.exists(x, x == 2) && object.list.exists_one(x, x == 3)", json!(true));
    check("object.list.map(x, x * 2)", json!([6, 2, 4]));
    check("object.list.map(x, x > 1, x * 2)", json!([6, 4]));
    check("object.list.filter(x, x != 1)", json!([3, 2]));
    check("object.map.all(k, object.map[k] > 0)", json!(true));
    check("object.map.map(k, k)", json!(["a", "b"]));
    check("object.list.all(i, v, i < 3 && v > 0)", json!(true));
    check("object.map.exists(k, v, k == 'b' && v == 2)", json!(true));
    check("object.map.transformMap(k, v, v + 1)", json!({"a": 2, "b": 3}));
    check("object.map.transformMap(k, v, v > 1, v + 1)", json!({"b": 3}));
    check("object.map.transformMapEntry(k, v, {string(v): k})", json!({"1": "a", "2": "b"}));
    check("object.list.transformList(i, v, i * v)", json!([0, 1, 4]));
    check("[3, 1, 2].sortBy(x, -x)", json!([3, 2, 1]));
    check("object.?missing.orValue('d') + object.?name.orValue('e')", json!("dx"));
    check("object.?nested.?deep[?0].optMap(x, x + '!').orValue('none')", json!("p!"));
    check("[?object.?missing, ?optional.of(dyn(1))]", json!([1]));
    check("{?'a': object.?missing, ?'b': optional.of(dyn(1))}", json!({"b": 1}));
    check("object.?missing.hasValue() || optional.none().or(optional.of(true)).value()", json!(true));
    check("optional.ofNonZeroValue('').hasValue()", json!(false));
}

#[test]
fn texts_and_lists() {
    check("'tacocat'.charAt(1) + 'abc'.charAt(3)", json!("a"));
    check("['hello'.indexOf('l'), 'hello'.indexOf('l', 3), 'hello'.lastIndexOf('l'), 'hello'.indexOf('z')]", json!([2, 3, 3, -1]));
    check("'TacoCät'.lowerAscii() + 'aé'.upperAscii()", json!("tacocätAé"));
    check("'a,b,c'.split(',', 2) + ['x', 'y'].map(v, v)", json!(["a", "b,c", "x", "y"]));
    check("['a', 'b'].join('-') + 'hello hello'.replace('he', 'we', 1)", json!("a-bwello hello"));
    check("'tacocat'.substring(4) + 'tacocat'.substring(0, 4) + '  t '.trim()", json!("cattacot"));
    check("'abc'.substring(2, 1)", json!("error: invalid substring range. start: 2, end: 1"));
    check("'abc'.charAt(9)", json!("error: index out of range: 9"));
    check("'%s is %d (%.2f, %x, %b) %%'.format(['a', dyn(3), 1.5, 255, 5])", json!("a is 3 (1.50, ff, 101) %"));
    check("'abc 123'.find('[0-9]+') + 'a1b2'.findAll('[0-9]').join()", json!("12312"));
    check("'abc'.matches('^a.c$') && matches('abc', 'b') && 'abc'.startsWith('a') && 'abc'.endsWith('c') && 'abc'.contains('b')", json!(true));
    check("size('é') + [1, 2].size() + size({'a': 1})", json!(4));
    check("[1, 2, 2].isSorted() && [1, 2].sum() == 3 && [2, 1].min() == 1 && [1.0, 2.0].max() == 2.0", json!(true));
    check("[].sum() == 0 && [1, 2, 1].indexOf(1) == 0 && [1, 2, 1].lastIndexOf(1) == 2", json!(true));
    check("dyn([]).min()", json!("error: min called on empty list"));
    check("[1, 2, 3].slice(1, 2) + [1, 1].distinct() + [2, 1].sort() + [[1], [2]].flatten() + [1, 2].reverse() + lists.range(2)", json!([2, 1, 1, 2, 1, 2, 2, 1, 0, 1]));
    check("[1, 2].first().value() + [1, 2].last().value()", json!(3));
    check("sets.contains([1, 2], [2]) && sets.equivalent([1, 1], [1]) && !sets.intersects([1], [2])", json!(true));
    check("jsonpatch.escapeKey('a/b~c')", json!("a~1b~0c"));
}

#[test]
fn times_and_conversions() {
    check("timestamp('2024-02-03T04:05:06.7Z').getFullYear() + timestamp('2024-02-03T04:05:06Z').getMonth()", json!(2025));
    check("timestamp('2024-02-03T04:05:06Z').getHours('+02:00') == 6 && timestamp('2024-02-03T04:05:06Z').getDayOfWeek() == 6", json!(true));
    check("timestamp('2024-01-02T00:00:00Z') - timestamp('2024-01-01T00:00:00Z') == duration('24h')", json!(true));
    check("string(duration('1h30m')) + string(timestamp('2024-01-01T00:00:00Z') + duration('1s'))", json!("5400s2024-01-01T00:00:01Z"));
    check("duration('1.5s').getMilliseconds() == 1500 && duration('90m').getHours() == 1", json!(true));
    check("int('3') + int(2.9) + int(4u) == 9 && uint(3) == 3u && double('1.5') == 1.5 && bool('true')", json!(true));
    check("string(1) + string(1.5) + string(true) + string(b'x') + string(2u)", json!("11.5truex2"));
    check("int('x')", json!("error: type conversion error from 'string' to 'int'"));
    check("uint(-1)", json!("error: unsigned integer overflow"));
}

#[test]
fn kubernetes_libraries() {
    check("quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('500m').add(quantity('500m')) == quantity('1')", json!(true));
    check("quantity('50k').asInteger() == 50000 && isQuantity('1.5Mi') && !isQuantity('x') && quantity('-1').sign() == -1", json!(true));
    check("quantity('1').compareTo(quantity('2')) == -1 && quantity('1.5').asApproximateFloat() == 1.5 && quantity('1').sub(1).sign() == 0", json!(true));
    check("ip('10.0.0.1').family() == 4 && ip('::1').isLoopback() && isIP('10.0.0.1') && !isIP('10.0.0.256') && ip.isCanonical('::1')", json!(true));
    check("cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR(cidr('10.1.0.0/16')) && isCIDR('::/0')", json!(true));
    check("string(cidr('10.1.2.3/8').masked()) + string(cidr('10.1.2.3/8').ip())", json!("10.0.0.0/810.1.2.3"));
    check("cidr('10.0.0.0/8').prefixLength()", json!(8));
    check("url('https://a.example:80/p?q=1&q=2').getHost() + url('https://[::1]:80/').getHostname()", json!("a.example:80::1"));
    check("url('https://a/p%20x?q=1&q=2').getQuery()", json!({"q": ["1", "2"]}));
    check("isURL('https://a') && !isURL('a b') && url('/path').getEscapedPath() == '/path' && url('http://a:1').getPort() == '1'", json!(true));
    check("semver('1.2.3').isLessThan(semver('1.10.0')) && semver('1.0.0-a').isLessThan(semver('1.0.0')) && semver('1.2.3').minor() == 2", json!(true));
    check("isSemver('1.2') || isSemver('v1.2', true)", json!(true));
    check("format.dns1123Label().validate('my-name').hasValue()", json!(false));
    check("format.named('uuid').value().validate('x').value()", json!(["does not match the UUID format"]));
    check("format.named('nothing').hasValue()", json!(false));
}

struct Only;

impl Authorizer for Only {
    fn check(&self, query: &Query) -> Decision {
        Decision { allowed: query.resource == "pods" && query.verb == "get", reason: format!("{}/{}", query.namespace, query.name), ..Decision::default() }
    }
}

#[test]
fn the_authorizer() {
    let program = Program::compile(
        &Env::default().with("authorizer", AUTHORIZER).with("authorizer.requestResource", RESOURCE_CHECK),
        "authorizer.group('').resource('pods').namespace('n').name('x').check('get').allowed() && !authorizer.requestResource.check('get').allowed()",
    )
    .expect("compiled");
    let made = |check| Val::Opaque(std::sync::Arc::new(Opaque::Authorizer(std::sync::Arc::new(Only), check, Query::default())));
    let given = [("authorizer", made(Check::Nothing)), ("authorizer.requestResource", made(Check::Resource))];
    assert!(matches!(program.eval(&&given[..]), (Ok(Val::Bool(true)), 700_000..)));
}

fn refused(env: &Env, source: &str, expected: &str) {
    assert_eq!(Program::compile(env, source).map(|p| p.type_).expect_err(source), expected, "{source}");
}

#[test]
fn compile_errors() {
    let env = Env::default().with("self", Type::object("object", [("a", Type::Int), ("s", Type::String)]));
    refused(&env, "self.zz > 1", "ERROR: <input>:1:5: undefined field 'zz'\n | self.zz > 1\n | ....^");
    refused(&env, "foo", "ERROR: <input>:1:1: undeclared reference to 'foo' (in container '')\n | foo\n | ^");
    refused(&env, "self.a == self.s", "ERROR: <input>:1:8: found no matching overload for '_==_' applied to '(int, string)'\n | self.a == self.s\n | .......^");
    refused(&env, "self.s.size(1)", "ERROR: <input>:1:12: found no matching overload for 'size' applied to 'string.(int)'\n | self.s.size(1)\n | ...........^");
    refused(&env, "[1, 'a']", "ERROR: <input>:1:5: expected type 'int' but found 'string'\n | [1, 'a']\n | ....^");
    refused(&env, "self.a.all(x, true)", "ERROR: <input>:1:5: expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)\n | self.a.all(x, true)\n | ....^");
    refused(&env, "self.a.b", "ERROR: <input>:1:7: type 'int' does not support field selection\n | self.a.b\n | ......^");
    refused(&env, "'a'.matches('(')", "ERROR: <input>:1:13: invalid matches argument\n | 'a'.matches('(')\n | ............^");
    refused(&env, "duration('x') == duration('1s')", "ERROR: <input>:1:10: invalid duration argument\n | duration('x') == duration('1s')\n | .........^");
    let syntax = "Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', ')', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";
    refused(&env, "bad(", &format!("ERROR: <input>:1:5: {syntax}\n | bad(\n | ....^"));
    refused(&env, "\nself.a &&\n  foo", "ERROR: <input>:2:5: expected type 'bool' but found 'int'\n | self.a &&\n | ....^\nERROR: <input>:3:3: undeclared reference to 'foo' (in container '')\n |   foo\n | ..^");
}

#[test]
fn nothing_panics_and_nothing_runs_for_ever() {
    let deep = |open: &str, close: &str, n: usize| format!("{}1{}", open.repeat(n), close.repeat(n));
    for source in [deep("(", ")", 5_000), deep("[", "]", 5_000), deep("-", "", 5_000), deep("!", "", 9), deep("{1:", "}", 300), "1+".repeat(5_000) + "1", "a.".repeat(9_000) + "a", "a".repeat(200_000)] {
        let _ = run(&source);
    }
    for n in 1..=120 {
        let _ = run(&deep("(", ")", n));
    }
    let _ = run(&deep("[", "]", 99));
    let _ = run(&("true ? 1 : ".repeat(98) + "1"));
    for source in ["", "(", "'", "'\\", "b'\\u", "1.", "0x", "a.b.", "[1", "{", "a{", "a?b", "a[?", "x.map(1, 2)", "has()", "has(1)", "''.format(['%'])", "'%.'.format([])", "'%.99999999999999f'.format([1.0])",
        "lists.range(9223372036854775807)", "[1].slice(-1, 9)", "duration('9999999999999h')", "timestamp('x')", "timestamp(9223372036854775807)", "int(1e300)", "-9223372036854775808 / -1", "-9223372036854775808 % -1",
        "'é'.substring(1, 5)", "'é'.charAt(-1)", "''.lastIndexOf('a', 5)", "''.indexOf('a', 1)", "''.split('', -5)", "url('//[')", "url('http://a:b')", "cidr('::/129')", "cidr('0.0.0.0/0').masked() == cidr('::/0').masked()", "semver('99999999999999999999.0.0')", "quantity('1').add(9223372036854775807)"] {
        let _ = run(source);
    }
    assert_eq!(run(&("1+".repeat(240) + "1")), Ok(json!(241)));
    assert_eq!(run(&("true && ".repeat(5_000) + "true")), Ok(json!(true)));
    let big = json!((0..2_000).collect::<Vec<_>>());
    let program = Program::compile(&env(), "object.all(a, object.all(b, object.all(c, a + b + c >= 0)))").expect("compiled");
    let given = [("object", Val::json(&big, &Type::Dyn))];
    let (result, cost) = program.eval(&&given[..]);
    assert_eq!(result.expect_err("too much").to_string(), "operation cancelled: actual cost limit exceeded");
    assert!(cost > CALL_LIMIT);
}

fn schema() -> Value {
    let rule = |rule: &str| json!([{"rule": rule}]);
    json!({"type": "object", "properties": {"spec": {
        "type": "object",
        "x-kubernetes-validations": [
            {"rule": "self.min <= self.max", "messageExpression": "'min %d is over max %d'.format([self.min, self.max])", "fieldPath": ".min"},
            {"rule": "!has(self.port) || self.port != 80", "message": "not 80", "reason": "FieldValueForbidden"},
            {"rule": "self.fixed == oldSelf.fixed", "message": "fixed is fixed"},
            {"rule": "oldSelf.hasValue() || self.max < 100", "optionalOldSelf": true, "message": "too large to begin with"},
        ],
        "properties": {
            "min": {"type": "integer"}, "max": {"type": "integer"}, "fixed": {"type": "string"},
            "port": {"x-kubernetes-int-or-string": true},
            "name": {"type": "string", "x-kubernetes-validations": rule("self.startsWith('a')")},
            "wait": {"type": "string", "format": "duration", "x-kubernetes-validations": rule("self < duration('1h')")},
            "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}, "x-kubernetes-validations": rule("self == ['a', 'b']")},
            "odd-name": {"type": "integer"},
            "items": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object",
                "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}, "x-kubernetes-validations": rule("self.v >= oldSelf.v")}},
            "map": {"type": "object", "additionalProperties": {"type": "integer", "x-kubernetes-validations": rule("self > 0")}},
        },
    }}})
}

fn judge(schema: &Value, path: &str) -> Vec<field::Error> {
    Rules::judge(schema, path, false, &|_| true)
}

fn violations(spec: Value, old: Option<Value>) -> Vec<String> {
    assert_eq!(judge(&schema(), "s"), []);
    let rules = Rules::compile(&schema());
    let wrap = |spec: Value| json!({"metadata": {"name": "x"}, "spec": spec});
    rules.validate(&wrap(spec), old.map(wrap).as_ref()).iter().map(field::Error::to_string).collect()
}

#[test]
fn rules_of_custom_resources() {
    let base = json!({"min": 1, "max": 2, "fixed": "f"});
    let with = |key: &str, value: Value| {
        let mut spec = base.clone();
        spec[key] = value;
        spec
    };
    assert_eq!(violations(base.clone(), None), [""; 0]);
    assert_eq!(violations(with("min", json!(3)), None), ["spec.min: Invalid value: min 3 is over max 2"]);
    assert_eq!(violations(with("port", json!(80)), None), ["spec: Forbidden: not 80"]);
    assert_eq!(violations(with("port", json!("80")), None), [""; 0]);
    assert_eq!(violations(with("name", json!("b")), None), ["spec.name: Invalid value: \"b\": failed rule: self.startsWith('a')"]);
    assert_eq!(violations(with("wait", json!("2h")), None), ["spec.wait: Invalid value: \"2h\": failed rule: self < duration('1h')"]);
    assert_eq!(violations(with("set", json!(["b", "a"])), None), [""; 0]);
    assert_eq!(violations(with("map", json!({"x": 0})), None), ["spec.map[x]: Invalid value: 0: failed rule: self > 0"]);
    assert_eq!(violations(with("max", json!(200)), None), ["spec: Invalid value: too large to begin with"]);
    assert_eq!(violations(with("max", json!(200)), Some(base.clone())), [""; 0]);
    assert_eq!(violations(with("fixed", json!("g")), Some(base.clone())), ["spec: Invalid value: fixed is fixed"]);
    let items = |v: i64| with("items", json!([{"k": "a", "v": 9}, {"k": "b", "v": v}]));
    assert_eq!(violations(items(1), Some(items(2))), ["spec.items[1]: Invalid value: failed rule: self.v >= oldSelf.v"]);
    // What was wrong already and hasn't changed is let be.
    let wrong = with("name", json!("b"));
    let mut changed = wrong.clone();
    changed["max"] = json!(3);
    assert_eq!(violations(changed, Some(wrong)), [""; 0]);
    let missing = violations(json!({"min": 1}), None);
    assert!(missing[0].starts_with("spec: Invalid value: \"object\": no such key: max evaluating rule: self.min <= self.max"), "{missing:?}");
}

#[test]
fn rules_that_do_not_compile() {
    let errors = judge(&json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.zz > 1"}]}), "p");
    let value = r#"{"Rule":"self.zz \u003e 1","Message":"","MessageExpression":"","Reason":null,"FieldPath":"","OptionalOldSelf":null}"#;
    let report = "compilation failed: ERROR: <input>:1:5: undefined field 'zz'\n | self.zz > 1\n | ....^";
    assert_eq!(errors[0].to_string(), format!("p.x-kubernetes-validations[0].rule: Invalid value: {value}: {report}"));
    let errors = |schema: Value| judge(&schema, "p").iter().map(|e| e.detail.clone()).collect::<Vec<_>>();
    assert_eq!(errors(json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.metadata.name"}]})), ["cel expression must evaluate to a bool"]);
    let lost = json!({"type": "object", "properties": {"l": {"type": "array", "maxItems": 9, "items": {"type": "string", "maxLength": 9, "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}}});
    assert_eq!(errors(lost), ["oldSelf cannot be used on the uncorrelatable portion of the schema within p.properties[l]"]);
}

/// The schema that the cases are about.
fn cases_schema() -> Value {
    serde_json::from_str(include_str!("cases/schema.json")).expect("a schema")
}

/// The estimates of upstream's 1.36.
#[test]
fn costs_are_upstreams() {
    let schema = cases_schema();
    let type_ = Type::of_schema(&schema, false).expect("a type");
    let bounds = super::bounds::Bounds::of_schema(&schema, false).expect("bounds");
    let env = Env::default().with("self", type_.clone()).with("oldSelf", type_);
    for line in include_str!("cases/costs.txt").lines() {
        let (cost, rule) = line.split_once(' ').expect("a cost and a rule");
        let program = Program::compile(&env, rule).expect(rule);
        assert_eq!(program.most(&bounds).to_string(), cost, "{rule}");
    }
}

/// What upstream's 1.36 says of wrong expressions: each one's line is followed by its errors.
#[test]
fn a_report_ends() {
    let why = Program::compile(&Env::default(), &"#".repeat(10_000)).expect_err("no expression");
    assert_eq!(why.matches("ERROR").count(), 100);
    assert!(why.ends_with("more errors were truncated"), "{why}");
}

#[test]
fn refusals_are_upstreams() {
    let type_ = Type::of_schema(&cases_schema(), false).expect("a type");
    let env = Env::default().with("self", type_.clone()).with("oldSelf", type_);
    let mut lines = include_str!("cases/refusals.txt").lines().peekable();
    while let Some(rule) = lines.next() {
        let mut expected = Vec::new();
        while let Some(error) = lines.next_if(|line| line.starts_with("  <input>")) {
            expected.push(error.trim_start());
        }
        let report = Program::compile(&env, rule).expect_err(rule);
        let found: Vec<&str> = report.lines().filter_map(|line| line.strip_prefix("ERROR: ")).collect();
        assert_eq!(found, expected, "{rule}");
    }
}

/// Neither checks nor estimates run for long, or go too deep.
#[test]
fn nothing_is_too_much_to_be_estimated() {
    let schema = json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "string"}}}});
    let type_ = Type::of_schema(&schema, false).expect("a type");
    let bounds = super::bounds::Bounds::of_schema(&schema, false).expect("bounds");
    let env = Env::default().with("self", type_);
    let nested = |n: usize| format!("{}true{}", "self.l.all(x, ".repeat(n), ")".repeat(n));
    let doubled = |n: usize| format!("optional.of(1){}.hasValue()", ".optMap(a, {a: a})".repeat(n));
    let chained = |n: usize| format!("optional.of(1){}.hasValue()", ".optMap(a, a + 1)".repeat(n));
    for source in [nested(97), nested(20), doubled(60), doubled(5), chained(120), "[".repeat(90) + &"]".repeat(90) + " == []", "[] + ".repeat(200) + "[] == []"] {
        if let Ok(program) = Program::build(&env, &source) {
            assert!(program.most(&bounds) > 0, "{source}");
        }
    }
    assert!(Program::build(&env, &chained(120)).is_ok());
    assert!(Program::build(&env, &doubled(60)).is_err());
}

/// What upstream's 1.36 counts for expressions when they run.
#[test]
fn what_is_spent_is_upstreams() {
    let letters = "abcdefghijklmnopqrstuvwxyz".repeat(2);
    let object = json!({"metadata": {"name": "p"}, "data": {"a": "abc", "b": "a", "l": letters, "u": "äöü".repeat(6), "t": "2020-01-01T00:00:00Z", "k": "20"}});
    let env = Env::default().with("object", Type::Dyn);
    for line in include_str!("cases/spent.txt").lines() {
        let (cost, expression) = line.split_once(' ').expect("a cost and an expression");
        let program = Program::build(&env, expression).expect(expression);
        let given = [("object", Val::json(&object, &Type::Dyn))];
        assert_eq!(program.eval(&&given[..]).1.to_string(), cost, "{expression}");
    }
}
