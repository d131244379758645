//! The fuzz targets, for a bounded time on seeded random input: what holds for any bytes is tried in every test run.

use skiff_api::random;

#[path = "../../fuzz/src/targets.rs"]
mod targets;

/// How many inputs each target gets.
const ROUNDS: usize = 3_000;

/// What input is made from: pieces of what each target reads.
const PIECES: &[&str] = &[
    "{", "}", "[", "]", "(", ")", ",", ":", "\"", "'", " ", "\n", "\n  ", "- ", ".", "..", "/", "~1", "~0", "*", "&a ", "*a", "<<: *a", "!", "!=", "==", "=", "=~",
    "in", "notin", "exists", "&&", "||", "? 1 : 2", "-", "0", "1", "-1", "1e400", "9223372036854775807", "18446744073709551616", "0.5", "1Gi", "100m", "1E6", "Ki",
    "null", "true", "\"a\"", "\"name\"", "\"\\ud800\"", "\"\\u0000\"", "é", "\u{1f600}", "\u{0}", "apiVersion", "v1", "kind", "Pod", "metadata", "labels", "spec", "containers",
    "\"op\":\"add\"", "\"op\":\"remove\"", "\"op\":\"move\",\"from\":\"/spec\"", "\"path\":\"/spec/containers/-\"", "\"path\":\"\"", "\"value\":{}",
    "\"$patch\":\"delete\"", "\"$patch\":\"replace\"", "\"$retainKeys\":[\"a\"]", "\"$setElementOrder/containers\":[{\"name\":\"c\"}]", "\"$deleteFromPrimitiveList/finalizers\":[\"x\"]",
    "object", "object.spec", ".map(x, x)", ".filter(x, true)", ".all(x, x == 1)", ".matches('a')", "size(", "quantity('1')", "duration('1h')", "timestamp('2020-01-01T00:00:00Z')",
    "[0]", "[-1]", "[0:1]", "[*]", "[?(@.name=='c')]", "{.items[*]}", "$", "@", "k8s\0", "\u{a}\u{4}\u{a}\u{2}v1\u{12}\u{3}Pod\u{12}\u{2}\u{a}\u{0}",
];

/// Whole inputs to be changed a little.
const SEEDS: &[&str] = &[
    r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"x":"y"}},"spec":{"containers":[{"name":"c","image":"i"}]}}"#,
    "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\nspec:\n  containers:\n  - name: c\n    image: i\n",
    r#"[{"op":"add","path":"/metadata/labels/z","value":"1"},{"op":"test","path":"/kind","value":"Pod"},{"op":"copy","from":"/spec","path":"/x"}]"#,
    r#"{"spec":{"containers":[{"name":"c","$patch":"delete"},{"name":"d"}],"tolerations":null}}"#,
    "a in (b,c),d notin (e),!f,g=h,i!=j,k>1",
    "metadata.name=a,status.phase!=Running,x==\\,",
    "object.spec.containers.all(c, c.name.matches('^[a-z]+$')) && size(object.metadata.labels) < 3",
    "{.spec.containers[?(@.name==\"c\")].ports[*].containerPort}",
    "123.456e3",
    "\u{63}abc",
    r#"{"v":"meta.k8s.io/v1","rv":7,"start":"ns/a\u0000"}"#,
    "k8s\0\u{a}\u{9}\u{a}\u{2}v1\u{12}\u{3}Pod\u{12}\u{5}\u{a}\u{3}\u{a}\u{1}a",
];

fn made() -> Vec<u8> {
    let mut input: Vec<u8> = match random::below(3) {
        0 => Vec::new(),
        _ => SEEDS[random::below(SEEDS.len())].into(),
    };
    for _ in 0..=random::below(12) {
        let at = random::below(input.len() + 1);
        match random::below(6) {
            0 if at < input.len() => input[at] = random::below(256) as u8,
            1 if at < input.len() => drop(input.remove(at)),
            2 => input.truncate(at.max(1)),
            3 => {
                let end = (at + random::below(40)).min(input.len());
                let again = input[at..end].to_vec();
                input.splice(at..at, again);
            }
            _ => drop(input.splice(at..at, PIECES[random::below(PIECES.len())].bytes())),
        }
    }
    input
}

/// Input that is deep, long or wide.
fn hard() -> Vec<String> {
    let mut hard: Vec<String> = ["[", "{\"a\":", "(", "!", "-", "a.", "..", "[*]", "- ", "{a: ", "a:\n ", "object.map(x, ", "[?(@", "'", "k8s\0\u{a}"].iter().map(|piece| piece.repeat(20_000)).collect();
    hard.push(format!("{}{}", "[".repeat(20_000), "]".repeat(20_000)));
    hard.push(format!("{}1{}", "(".repeat(20_000), ")".repeat(20_000)));
    hard.push(format!("{}a{}", "[?(@.".repeat(20_000), ")]".repeat(20_000)));
    hard.push(format!("1{}", " + 1".repeat(20_000)));
    hard.push(format!("1{}", " ? 1 : 1".repeat(20_000)));
    // Nine levels of nine references each.
    let levels = (1..9).map(|level| format!("l{level}: &l{level} [{}]\n", vec![format!("*l{}", level - 1); 9].join(",")));
    hard.push(format!("l0: &l0 [a,b,c]\n{}", levels.collect::<String>()));
    hard
}

#[test]
fn targets_hold_on_random_input() {
    for (index, (name, target)) in targets::ALL.iter().enumerate() {
        random::seed(0x5eed + index as u64);
        for round in 0..ROUNDS {
            let input = made();
            let held = std::panic::catch_unwind(|| target(&input));
            assert!(held.is_ok(), "{name}, round {round}: {:?}", String::from_utf8_lossy(&input));
        }
    }
}

#[test]
fn targets_hold_on_hard_input() {
    for (name, target) in targets::ALL {
        for input in hard() {
            let began = std::time::Instant::now();
            target(input.as_bytes());
            let took = began.elapsed();
            assert!(took < std::time::Duration::from_secs(20), "{name} took {took:?} over {:?}...", input.chars().take(20).collect::<String>());
        }
    }
}
