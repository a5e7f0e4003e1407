//! Which container has which GPU: a series to join the GPUs' figures with, whose own labels then stay as they are when
//! pods come and go.

use std::collections::BTreeSet;
use std::fmt;

use super::write::Writer;
use crate::source::gpu::Gpus;
use crate::source::pod_resources::Allocation;

/// `gpus`: as NVML has them, for ids that are no UUIDs.
pub(super) fn encode(page: &mut Writer, allocations: &[&Allocation], gpus: Option<&Gpus>) -> fmt::Result {
    // Two shares of one GPU are one series.
    let rows: BTreeSet<_> = allocations
        .iter()
        .flat_map(|it| it.uuids(gpus).map(|uuid| (uuid, &*it.namespace, &*it.pod, &*it.container)))
        .collect();
    page.gauges(
        "ebb_gpu_allocation_info",
        "Which container was given which GPU or MIG device, as the kubelet says.",
        rows.into_iter().map(|(uuid, namespace, pod, container)| {
            ([("gpu_uuid", uuid), ("namespace", namespace), ("pod", pod), ("container", container)], 1.0)
        }),
    )
}
