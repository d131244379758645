//! Sets of completion indexes, written `0-2,5,7`.

use std::collections::BTreeSet;
use std::fmt;

/// A set of indexes, as runs of neighbours: first and last of each, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// Reads a set; what is no number, or not below `completions`, is left out.
    pub fn parse(text: &str, completions: i32) -> Self {
        let mut all = BTreeSet::new();
        let mut runs = Vec::new();
        for run in text.split(',').filter(|run| !run.is_empty()) {
            let (first, last) = run.split_once('-').unwrap_or((run, run));
            if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>())
                && (0..completions).contains(&first)
                && last >= first
            {
                runs.push((first, last.min(completions - 1)));
            }
        }
        // Runs that touch or overlap become one.
        for (first, last) in runs {
            all.insert((first, last));
        }
        Self(all.into_iter().collect::<Vec<_>>()).joined()
    }

    fn joined(self) -> Self {
        let mut joined: Vec<(i32, i32)> = Vec::with_capacity(self.0.len());
        for (first, last) in self.0 {
            match joined.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => joined.push((first, last)),
            }
        }
        Self(joined)
    }

    /// The set with more indexes.
    pub fn with(&self, more: impl IntoIterator<Item = i32>) -> Self {
        self.union(&Self(more.into_iter().collect::<BTreeSet<_>>().into_iter().map(|i| (i, i)).collect()))
    }

    /// Both sets together.
    pub fn union(&self, other: &Self) -> Self {
        let mut runs: Vec<_> = self.0.iter().chain(&other.0).copied().collect();
        runs.sort_unstable();
        Self(runs).joined()
    }

    /// How many indexes both sets have.
    pub fn common(&self, other: &Self) -> usize {
        let overlap = |a: &(i32, i32), b: &(i32, i32)| (a.1.min(b.1) - a.0.max(b.0) + 1).max(0) as usize;
        self.0.iter().map(|a| other.0.iter().map(|b| overlap(a, b)).sum::<usize>()).sum()
    }

    /// The number of indexes.
    pub fn len(&self) -> usize {
        self.0.iter().map(|(first, last)| (last - first + 1) as usize).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the index is among them.
    pub fn contains(&self, index: i32) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(at).is_some_and(|(first, _)| *first <= index)
    }

    /// Up to `count` indexes below `completions` that are not among them, the lowest first.
    pub fn missing(&self, completions: i32, count: usize) -> Vec<i32> {
        let mut found = Vec::new();
        let mut next = 0;
        for &(first, last) in self.0.iter().chain(std::iter::once(&(completions, completions))) {
            while next < first.min(completions) && found.len() < count {
                found.push(next);
                next += 1;
            }
            next = next.max(last.saturating_add(1));
        }
        found
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_and_writing() {
        let check = |text, completions, expected: &str| assert_eq!(Indexes::parse(text, completions).to_string(), expected);
        check("", 10, "");
        check("0-2,5,7", 10, "0-2,5,7");
        check("0,1,2", 10, "0-2");
        check("3,4", 10, "3,4");
        check("0-20", 5, "0-4");
        check("x,7,9-8", 10, "7");
    }

    #[test]
    fn as_sets() {
        let some = Indexes::parse("1-3,6", 10);
        assert_eq!(some.len(), 4);
        assert!(some.contains(2) && some.contains(6) && !some.contains(0) && !some.contains(7));
        assert_eq!(some.missing(8, 10), [0, 4, 5, 7]);
        assert_eq!(some.missing(8, 2), [0, 4]);
        assert_eq!(some.with([4, 0]).to_string(), "0-4,6");
        assert_eq!(some.common(&Indexes::parse("2-6", 10)), 3);
    }
}
