//! How the server's seats are shared out among priority levels: by their shares, and lent to those that need more.

/// What a level may have, in seats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Its part of the server's seats.
    pub nominal: u32,
    /// What it keeps when the others borrow.
    pub least: u32,
    /// What it may come to by borrowing.
    pub most: u32,
}

/// What a configuration says of a level's part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Claim {
    /// `nominalConcurrencyShares`
    pub shares: u32,
    /// `lendablePercent`
    pub lendable: u32,
    /// `borrowingLimitPercent`; `None` for no limit.
    pub borrowing: Option<u32>,
}

/// Shares `total` seats out. Upstream's rounding.
pub(super) fn bounds(total: u32, claims: &[Claim]) -> Vec<Bounds> {
    let all: u64 = claims.iter().map(|claim| u64::from(claim.shares)).sum::<u64>().max(1);
    let percent = |of: u32, percent: u32| ((f64::from(of) * f64::from(percent) / 100.0).round()) as u32;
    let part = |claim: &Claim| {
        let nominal = (u64::from(total) * u64::from(claim.shares)).div_ceil(all) as u32;
        let most = claim.borrowing.map_or(total.max(nominal), |limit| nominal.saturating_add(percent(nominal, limit)));
        Bounds { nominal, least: nominal - percent(nominal, claim.lendable).min(nominal), most }
    };
    claims.iter().map(part).collect()
}

/// The levels' limits now, by what each wants at most (`wants`, in seats). Nobody who wants its own is kept from it; what is
/// lent goes to those who want more, by their nominal parts; what nobody wants stays where it belongs.
pub(super) fn limits(levels: &[(Bounds, u32)]) -> Vec<u32> {
    let mut limits: Vec<u32> = levels.iter().map(|(b, wants)| b.least.max(b.nominal.min(*wants))).collect();
    let total: u32 = levels.iter().map(|(b, _)| b.nominal).sum();
    let mut spare = total.saturating_sub(limits.iter().sum());
    for up_to in [|b: &Bounds, wants: u32| b.most.min(wants), |b: &Bounds, _: u32| b.nominal] {
        loop {
            let open: Vec<usize> = (0..levels.len()).filter(|i| limits[*i] < up_to(&levels[*i].0, levels[*i].1)).collect();
            let weight: u32 = open.iter().map(|i| levels[*i].0.nominal.max(1)).sum();
            if open.is_empty() || spare == 0 {
                break;
            }
            let round = spare;
            for i in open {
                let (bounds, wants) = &levels[i];
                let part = (u64::from(round) * u64::from(bounds.nominal.max(1))).div_ceil(u64::from(weight)) as u32;
                let given = part.min(up_to(bounds, *wants) - limits[i]).min(spare);
                limits[i] += given;
                spare -= given;
            }
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_upstreams() {
        let claim = |shares, lendable, borrowing| Claim { shares, lendable, borrowing };
        let got = bounds(600, &[claim(0, 0, None), claim(5, 0, None), claim(30, 33, None), claim(40, 25, None), claim(10, 0, None), claim(40, 50, None), claim(100, 90, None), claim(20, 50, Some(10))]);
        let shown: Vec<_> = got.iter().map(|b| (b.nominal, b.least, b.most)).collect();
        assert_eq!(shown, [(0, 0, 600), (13, 13, 600), (74, 50, 600), (98, 73, 600), (25, 25, 600), (98, 49, 600), (245, 24, 600), (49, 24, 54)]);
        assert_eq!(bounds(10, &[]), []);
    }

    #[test]
    fn seats_are_lent() {
        let level = |nominal, least, most, wants| (Bounds { nominal, least, most }, wants);
        let check = |levels: &[(Bounds, u32)], expected: &[u32]| assert_eq!(limits(levels), expected, "{levels:?}");
        // Nobody wants anything: each has its own.
        check(&[level(10, 5, 20, 0), level(20, 0, 20, 0)], &[10, 20]);
        // One wants more: the other lends what it may, but not what it uses.
        check(&[level(10, 5, 30, 100), level(20, 5, 20, 0)], &[25, 5]);
        check(&[level(10, 5, 30, 100), level(20, 5, 20, 15)], &[15, 15]);
        check(&[level(10, 5, 12, 100), level(20, 5, 20, 0)], &[12, 18]);
        // Both want more than there is.
        check(&[level(10, 5, 30, 100), level(20, 5, 30, 100)], &[10, 20]);
        // Two borrow from a third, by their parts.
        check(&[level(10, 5, 90, 100), level(20, 5, 90, 100), level(30, 0, 30, 0)], &[20, 40, 0]);
    }
}
