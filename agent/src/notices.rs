//! GPUs that need the node empty, from the sampler to what is known of the node's end. What instance metadata knows of it
//! comes there by itself (`source/imds.rs`).

use std::sync::Arc;

use ebb_core::intent::Trigger;
use ebb_core::notice::{self, Notices};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::gpus::GpuHealth;
use crate::sampler::Sample;

/// Follows the samples until `stop`.
pub(crate) async fn follow_gpus(
    mut samples: watch::Receiver<Option<Arc<Sample>>>,
    notices: watch::Sender<Notices>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = samples.changed() => if changed.is_err() { return },
        }
        let sample = samples.borrow_and_update().clone();
        let known = sample.and_then(|sample| {
            let gpus = sample.reading.gpus.as_ref()?;
            notice::of_gpus(gpus.health.iter().map(|health| (name(health), &health.verdict)), sample.at)
        });
        notices.send_if_modified(|notices| notices.learn(Trigger::GpuRecovery, known));
    }
}

fn name(health: &GpuHealth) -> String {
    health.identity.as_ref().map_or_else(|| health.pci.to_string(), |identity| identity.uuid.to_string())
}
