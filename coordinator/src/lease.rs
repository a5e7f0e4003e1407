//! Holds the Lease `ebb-coordinator` if it can, the way `ebb_core::lease` says. One replica acts; the others wait.

use std::time::Duration;

use ebb_core::lease::{DURATION, Election, RENEW_DEADLINE, RENEW_EVERY, Record, Step};
use ebb_core::time::Instant;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::standing::Standing;

/// The Lease's name.
pub const NAME: &str = "ebb-coordinator";
/// For reading and writing the Lease once. Some of them fit into the time a leader has to renew.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(4);

pub struct Leadership {
    api: Api<Lease>,
    identity: String,
    clock: Clock,
    standing: Standing,
    election: Election,
    /// Until when the last accepted write lets us lead.
    leads_until: Option<Instant>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("read or write the Lease")]
    Kube(#[from] kube::Error),
    #[error("no reply in {} s", ATTEMPT_TIMEOUT.as_secs())]
    Late(#[from] tokio::time::error::Elapsed),
}

impl Leadership {
    pub fn new(client: Client, namespace: &str, identity: String, clock: Clock, standing: Standing) -> Self {
        let api = Api::namespaced(client, namespace);
        let election = Election::new(identity.clone());
        Self { api, identity, clock, standing, election, leads_until: None }
    }

    /// Leads whenever it can, until `stop`; then lets go, so that the next one need not wait.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let deadline = self.leads_until;
            let clock = self.clock;
            tokio::select! {
                () = stop.cancelled() => break,
                // Time is up: nothing that is still on its way counts any more.
                () = clock.sleep_until(deadline) => {
                    tracing::warn!(seconds = RENEW_DEADLINE.as_secs(), "lease not renewed for too long");
                }
                result = timeout(ATTEMPT_TIMEOUT, self.attempt()) => {
                    if let Err(error) = result.map_err(Error::from).flatten() {
                        tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "lease not renewed");
                    }
                }
            }
            self.publish().await;
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep(RENEW_EVERY) => {}
            }
        }
        self.release().await;
    }

    async fn publish(&mut self) {
        let leads = self.election.leads(self.clock.now());
        if !leads {
            self.leads_until = None;
        }
        if leads != self.standing.leads() {
            tracing::info!(leads, identity = self.identity, "leadership changed");
        }
        self.standing.set_leading(leads).await;
    }

    async fn attempt(&mut self) -> Result<(), Error> {
        let asked_at = self.clock.now();
        let lease = self.api.get_opt(NAME).await?;
        let step = self.election.observe(asked_at, lease.as_ref().map(record));
        let written = match (step, lease) {
            (Step::Wait, _) => return Ok(()),
            (Step::Acquire, None) => {
                let metadata = ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() };
                let spec = Some(self.spec(None, true));
                self.api.create(&PostParams::default(), &Lease { metadata, spec }).await
            }
            (step, Some(mut lease)) => {
                // The resource version that was read makes the write fail if another was faster.
                lease.spec = Some(self.spec(lease.spec.take(), step == Step::Acquire));
                self.api.replace(NAME, &PostParams::default(), &lease).await
            }
            (Step::Renew, None) => return Ok(()),
        };
        match written {
            Ok(_) => {
                self.election.renewed(asked_at);
                self.leads_until = Some(asked_at + RENEW_DEADLINE);
                Ok(())
            }
            // Another was faster; the next look shows who.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn spec(&self, old: Option<LeaseSpec>, acquire: bool) -> LeaseSpec {
        let old = old.unwrap_or_default();
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(DURATION.as_secs().try_into().expect("15 fits")),
            acquire_time: if acquire { Some(now.clone()) } else { old.acquire_time },
            renew_time: Some(now),
            lease_transitions: Some(old.lease_transitions.unwrap_or(0) + i32::from(acquire)),
            ..LeaseSpec::default()
        }
    }

    /// Best effort: without it the next leader only starts some seconds later.
    async fn release(self) {
        let led = self.standing.leads();
        self.standing.set_leading(false).await;
        if !led {
            return;
        }
        let release = async {
            let mut lease = self.api.get(NAME).await?;
            if record(&lease).holder == self.identity
                && let Some(spec) = &mut lease.spec
            {
                spec.holder_identity = Some(String::new());
                self.api.replace(NAME, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube::Error>(())
        };
        match timeout(ATTEMPT_TIMEOUT, release).await.map_err(Error::from).and_then(|done| Ok(done?)) {
            Ok(()) => tracing::info!("lease released"),
            Err(error) => tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "lease not released"),
        }
    }
}

fn record(lease: &Lease) -> Record {
    let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
    Record { holder: holder.unwrap_or_default(), resource_version: lease.resource_version().unwrap_or_default() }
}
