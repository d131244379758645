//! Leader election, so that of several controllers or schedulers one acts: by a Lease, as upstream's components do it.

use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use skiff_api::{clock, random};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a lease holds that isn't renewed; this, and what follows, are upstream's durations.
const LEASE: Duration = Duration::from_secs(15);
/// How long the leader tries to renew before it gives up.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// The pause between tries, those who wait draw up to 1.2 times more.
const RETRY: Duration = Duration::from_secs(2);
const JITTER: f64 = 1.2;

/// What somebody who wants to lead does about the lease.
#[derive(Debug, PartialEq)]
enum Step {
    /// It is ours: renew it.
    Renew,
    /// It is nobody's, or wasn't renewed in time: take it.
    Take,
    /// Somebody leads.
    Wait,
}

/// Decides. `unchanged` is for how long, by our own clock, nobody wrote the lease: clocks of machines differ.
fn step(lease: &LeaseSpec, me: &str, unchanged: Duration) -> Step {
    let holder = lease.holder_identity.as_deref().unwrap_or("");
    let lasts = Duration::from_secs(u64::try_from(lease.lease_duration_seconds.unwrap_or(0)).unwrap_or(0));
    if holder == me {
        Step::Renew
    } else if holder.is_empty() || unchanged > lasts {
        Step::Take
    } else {
        Step::Wait
    }
}

/// The lease as it is once we took or renewed it.
fn held(old: &LeaseSpec, me: &str) -> LeaseSpec {
    let now = MicroTime(clock::now());
    let ours = old.holder_identity.as_deref() == Some(me);
    let changes = old.lease_transitions.unwrap_or(0);
    LeaseSpec {
        holder_identity: Some(me.into()),
        lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
        acquire_time: if ours { old.acquire_time.clone() } else { Some(now.clone()) },
        lease_transitions: Some(if ours { changes } else { changes + 1 }),
        renew_time: Some(now),
        ..LeaseSpec::default()
    }
}

/// Who wants to lead.
struct Candidate {
    leases: Api<Lease>,
    name: &'static str,
    me: String,
    /// The lease as it was last seen, and when it was first seen so.
    seen: Option<(Lease, Instant)>,
}

impl Candidate {
    /// Tries to have or keep the lease; whether it is ours.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let Some(lease) = self.leases.get_opt(self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.into()), ..ObjectMeta::default() };
            let spec = LeaseSpec { lease_transitions: Some(0), ..held(&LeaseSpec::default(), &self.me) };
            let lease = self.leases.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await?;
            self.seen = Some((lease, Instant::now()));
            return Ok(true);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if seen.metadata.resource_version == lease.metadata.resource_version => *since,
            _ => Instant::now(),
        };
        self.seen = Some((lease.clone(), since));
        if step(&spec, &self.me, since.elapsed()) == Step::Wait {
            return Ok(false);
        }
        let taken = Lease { spec: Some(held(&spec, &self.me)), ..lease };
        // Carries its resource version: of two who take it, one is refused.
        let lease = self.leases.replace(self.name, &PostParams::default(), &taken).await?;
        self.seen = Some((lease, Instant::now()));
        Ok(true)
    }

    /// Keeps the lease for as long as it can be kept.
    async fn keep(&mut self) -> anyhow::Error {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(RETRY).await;
            let left = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.attempt()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => return anyhow::anyhow!("leader election lost: another process holds the lease {}", self.name),
                Ok(Err(error)) => tracing::warn!(%error, lease = self.name, "renewing the lease failed"),
                Err(_) => {}
            }
            if renewed.elapsed() >= RENEW_DEADLINE {
                return anyhow::anyhow!("leader election lost: the lease {} could not be renewed for {RENEW_DEADLINE:?}", self.name);
            }
        }
    }

    /// Lets the next one lead at once.
    async fn release(&mut self) {
        let Some((lease, _)) = self.seen.take() else { return };
        let spec = lease.spec.clone().unwrap_or_default();
        let freed = LeaseSpec { holder_identity: None, lease_duration_seconds: Some(1), acquire_time: None, ..spec };
        let freed = Lease { spec: Some(freed), ..lease };
        let done = tokio::time::timeout(RETRY, self.leases.replace(self.name, &PostParams::default(), &freed)).await;
        if let Ok(Err(error)) = done {
            tracing::debug!(%error, lease = self.name, "the lease was not released");
        }
    }
}

/// Waits until this process leads, then does `work`; ends with it, or with an error when it leads no longer. What `work`
/// is told to stop by is cancelled when `stop` is.
pub async fn lead<W>(client: &Client, name: &'static str, stop: &CancellationToken, work: impl FnOnce(CancellationToken) -> W) -> anyhow::Result<()>
where
    W: Future<Output = anyhow::Result<()>>,
{
    let host = crate::components::hostname()?;
    let mut candidate = Candidate {
        leases: Api::namespaced(client.clone(), "kube-system"),
        name,
        me: format!("{host}_{}", random::uid()),
        seen: None,
    };
    let mut waiting = false;
    loop {
        match candidate.attempt().await {
            Ok(true) => break,
            Ok(false) if !waiting => {
                waiting = true;
                println!("another process leads: waiting for the lease kube-system/{name}");
            }
            Ok(false) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403) => {
                bail!("take the lease kube-system/{name}: {}; use a kubeconfig of `skiff kubeconfig --user`", status.message)
            }
            Err(error) => tracing::warn!(%error, lease = name, "taking the lease failed"),
        }
        let pause = RETRY.mul_f64(1.0 + JITTER * random::fraction());
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return Ok(());
        }
    }
    tell(client, name, &candidate).await;
    let result = tokio::select! {
        result = work(stop.clone()) => result,
        lost = candidate.keep() => return Err(lost),
    };
    candidate.release().await;
    result.with_context(|| format!("{name} ended"))
}

/// Says who leads, by upstream's event.
async fn tell(client: &Client, name: &str, candidate: &Candidate) {
    let Some((lease, _)) = &candidate.seen else { return };
    let recorder = Recorder::new(client.clone(), Reporter { controller: name.into(), instance: Some(candidate.me.clone()) });
    let note = Some(format!("{} became leader", candidate.me));
    let event = Event { type_: EventType::Normal, reason: "LeaderElection".into(), note, action: "LeaderElection".into(), secondary: None };
    if let Err(error) = recorder.publish(&event, &lease.object_ref(&())).await {
        tracing::debug!(%error, "the event of the election was not written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps() {
        let check = |holder: Option<&str>, unchanged: u64, expected: Step| {
            let spec = LeaseSpec { holder_identity: holder.map(Into::into), lease_duration_seconds: Some(15), ..LeaseSpec::default() };
            assert_eq!(step(&spec, "me", Duration::from_secs(unchanged)), expected, "{holder:?} {unchanged}");
        };
        check(Some("me"), 100, Step::Renew);
        check(Some("other"), 0, Step::Wait);
        check(Some("other"), 15, Step::Wait);
        check(Some("other"), 16, Step::Take);
        check(Some(""), 0, Step::Take);
        check(None, 0, Step::Take);
    }

    #[test]
    fn a_change_of_leaders_is_counted() {
        let mine = held(&LeaseSpec { holder_identity: Some("other".into()), lease_transitions: Some(3), ..LeaseSpec::default() }, "me");
        assert_eq!((mine.holder_identity.as_deref(), mine.lease_transitions), (Some("me"), Some(4)));
        let renewed = held(&mine, "me");
        assert_eq!((renewed.lease_transitions, renewed.acquire_time), (Some(4), mine.acquire_time));
    }
}
