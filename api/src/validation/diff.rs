//! The difference of two texts in the unified format, as upstream's messages show the difference of two specs.

/// How many unchanged lines stand around a change.
const CONTEXT: usize = 3;

/// One step from the old lines to the new ones.
#[derive(Clone, Copy, PartialEq)]
enum Step {
    Keep(usize, usize),
    Remove(usize),
    Add(usize),
}

/// The unified difference, without file names.
pub(super) fn unified(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let steps = steps(&old, &new);
    let changed: Vec<usize> = (0..steps.len()).filter(|i| !matches!(steps[*i], Step::Keep(..))).collect();
    let mut text = String::new();
    let mut rest = changed.as_slice();
    while let [first, ..] = rest {
        // A hunk goes on as long as the next change is within both contexts.
        let len = 1 + rest.windows(2).take_while(|w| w[1] - w[0] <= 2 * CONTEXT).count();
        let (from, to) = (first.saturating_sub(CONTEXT), (rest[len - 1] + CONTEXT + 1).min(steps.len()));
        hunk(&mut text, &old, &new, &steps[..from], &steps[from..to]);
        rest = &rest[len..];
    }
    text
}

fn hunk(text: &mut String, old: &[&str], new: &[&str], before: &[Step], steps: &[Step]) {
    let count = |steps: &[Step]| {
        let removed = steps.iter().filter(|s| !matches!(s, Step::Add(_))).count();
        let added = steps.iter().filter(|s| !matches!(s, Step::Remove(_))).count();
        (removed, added)
    };
    let ((old_start, new_start), (old_len, new_len)) = (count(before), count(steps));
    let range = |start: usize, len: usize| match len {
        1 => format!("{}", start + 1),
        0 => format!("{start},0"),
        _ => format!("{},{len}", start + 1),
    };
    text.push_str(&format!("@@ -{} +{} @@\n", range(old_start, old_len), range(new_start, new_len)));
    for step in steps {
        let (sign, line) = match step {
            Step::Keep(i, _) => (' ', old[*i]),
            Step::Remove(i) => ('-', old[*i]),
            Step::Add(j) => ('+', new[*j]),
        };
        text.push(sign);
        text.push_str(line);
        text.push('\n');
    }
}

/// Past so many pairs of lines a change is shown whole, and not searched for what stayed within it.
const MAX_PAIRS: usize = 4_000_000;

/// The steps by a longest common subsequence; of a change, what goes comes before what comes.
fn steps(old: &[&str], new: &[&str]) -> Vec<Step> {
    let prefix = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let suffix = old[prefix..].iter().rev().zip(new[prefix..].iter().rev()).take_while(|(a, b)| a == b).count();
    let (a, b) = (&old[prefix..old.len() - suffix], &new[prefix..new.len() - suffix]);
    let searched = a.len().saturating_mul(b.len()) <= MAX_PAIRS;
    let mut length = vec![vec![0u32; if searched { b.len() + 1 } else { 0 }]; a.len() + 1];
    for i in (0..if searched { a.len() } else { 0 }).rev() {
        for j in (0..b.len()).rev() {
            length[i][j] = if a[i] == b[j] { length[i + 1][j + 1] + 1 } else { length[i + 1][j].max(length[i][j + 1]) };
        }
    }
    let mut steps: Vec<Step> = (0..prefix).map(|i| Step::Keep(i, i)).collect();
    let (mut i, mut j) = (0, 0);
    while i < a.len() || j < b.len() {
        if searched && i < a.len() && j < b.len() && a[i] == b[j] {
            steps.push(Step::Keep(prefix + i, prefix + j));
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || i < a.len() && (!searched || length[i + 1][j] >= length[i][j + 1]) {
            steps.push(Step::Remove(prefix + i));
            i += 1;
        } else {
            steps.push(Step::Add(prefix + j));
            j += 1;
        }
    }
    steps.extend((0..suffix).map(|k| Step::Keep(old.len() - suffix + k, new.len() - suffix + k)));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hunks() {
        let old: Vec<String> = (1..=20).map(|i| i.to_string()).collect();
        let mut new = old.clone();
        new[9] = "x".into();
        assert_eq!(unified(&old.join("\n"), &new.join("\n")), "@@ -7,7 +7,7 @@\n 7\n 8\n 9\n-10\n+x\n 11\n 12\n 13\n");
        new.remove(0);
        assert_eq!(unified(&old.join("\n"), &new.join("\n")), "@@ -1,4 +1,3 @@\n-1\n 2\n 3\n 4\n@@ -7,7 +6,7 @@\n 7\n 8\n 9\n-10\n+x\n 11\n 12\n 13\n");
        assert_eq!(unified("a", "a"), "");
        let many = |mark: &str| (0..3000).map(|i| format!("{mark}{i}")).collect::<Vec<_>>().join("\n");
        assert_eq!(unified(&many("a"), &many("b")).lines().count(), 6001);
    }
}
