//! The way in from other machines: Docker drops what is forwarded to containers from outside, unless it published the port
//! itself. What the proxy translated is let through in Docker's chain for such rules.

use std::process::Stdio;

use tokio::process::Command;

use crate::nft::Error;

/// Docker's chain for rules of others; it keeps them over its own restarts.
const CHAIN: &str = "DOCKER-USER";

fn comment(cluster: &str) -> String {
    format!("skiff:{cluster}")
}

async fn iptables(args: &[&str]) -> Result<String, Error> {
    let output = Command::new("iptables").arg("-w").args(args).stdin(Stdio::null()).output().await.map_err(Error::Iptables)?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(Error::Refused(String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("iptables gave no reason").to_owned())),
    }
}

/// The rules of the cluster in a listing of the chain (`-A DOCKER-USER ...`), as arguments that delete them.
fn deletions(listing: &str, cluster: &str) -> Vec<Vec<String>> {
    let ours = comment(cluster);
    let rules = listing.lines().filter_map(|line| line.strip_prefix("-A "));
    let rules = rules.map(|rule| rule.split_whitespace().map(|word| word.trim_matches('"').to_owned()).collect::<Vec<_>>());
    let own = rules.filter(|words| words.windows(2).any(|pair| pair[0] == "--comment" && pair[1] == ours));
    own.map(|words| std::iter::once("-D".to_owned()).chain(words).collect()).collect()
}

/// Lets through what was translated to a pod. Nothing is to be done where there is no such chain: nobody drops then.
pub async fn open(cluster: &str, pod_cidr: &str) -> Result<(), Error> {
    let Ok(listing) = iptables(&["-S", CHAIN]).await else { return Ok(()) };
    remove(&listing, cluster).await?;
    let comment = comment(cluster);
    let rule = ["-I", CHAIN, "-d", pod_cidr, "-m", "conntrack", "--ctstate", "DNAT", "-m", "comment", "--comment", &comment, "-j", "ACCEPT"];
    iptables(&rule).await.map(drop)
}

/// Takes the rule away.
pub async fn close(cluster: &str) -> Result<(), Error> {
    let Ok(listing) = iptables(&["-S", CHAIN]).await else { return Ok(()) };
    remove(&listing, cluster).await
}

async fn remove(listing: &str, cluster: &str) -> Result<(), Error> {
    for rule in deletions(listing, cluster) {
        let rule: Vec<&str> = rule.iter().map(String::as_str).collect();
        iptables(&rule).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_clusters_own_rules_are_removed() {
        let listing = "-N DOCKER-USER\n\
            -A DOCKER-USER -d 10.244.0.0/16 -m conntrack --ctstate DNAT -m comment --comment \"skiff:a\" -j ACCEPT\n\
            -A DOCKER-USER -d 10.1.0.0/16 -m comment --comment skiff:ab -j ACCEPT\n\
            -A DOCKER-USER -j RETURN\n";
        let found: Vec<String> = deletions(listing, "a").iter().map(|words| words.join(" ")).collect();
        assert_eq!(found, ["-D DOCKER-USER -d 10.244.0.0/16 -m conntrack --ctstate DNAT -m comment --comment skiff:a -j ACCEPT"]);
        assert!(deletions(listing, "b").is_empty());
    }
}
