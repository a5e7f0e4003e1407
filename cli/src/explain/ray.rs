//! Ray's workers on a node, and what each does there.

use ebb_core::time::Instant;
use ebb_core::view::{Node, RayWorker, RayWorkerState};

use crate::sheet::Align::Left;
use crate::sheet::Sheet;
use crate::text::{moment, span};

/// Of what Ray says of a worker on which nothing runs.
const OBJECTS: &str = "object_store_memory";

/// Who alone holds the node, where that is Ray and for nothing.
pub(super) fn held(node: &Node, now: Instant, sheet: &mut Sheet) {
    let Some(since) = node.idle_ray_only else { return };
    let words = format!("by idle workers of Ray alone, for {}, since {}", span(now.since(since)), moment(since));
    sheet.advice("held", &words, "it may go when they do: that is up to whoever scales them, such as Ray's autoscaler");
}

pub(super) fn workers(node: &Node, now: Instant, sheet: &mut Sheet) {
    if node.ray_workers.is_empty() {
        return;
    }
    sheet.title(&format!("Ray workers {}", node.ray_workers.len()));
    let row = |worker: &RayWorker| vec![worker.pod.clone(), worker.cluster.clone(), state(&worker.state, now)];
    sheet.table(&[("", Left), ("CLUSTER", Left), ("", Left)], &node.ray_workers.iter().map(row).collect::<Vec<_>>());
}

fn state(state: &RayWorkerState, now: Instant) -> String {
    match state {
        RayWorkerState::Busy { because } if because.is_empty() => "busy".to_owned(),
        RayWorkerState::Busy { because } if because.iter().all(|it| it.contains(OBJECTS)) => {
            "nothing runs there, but it has objects that a program still refers to".to_owned()
        }
        RayWorkerState::Busy { because } => {
            let because: Vec<_> =
                because.iter().map(|it| it.trim_start_matches("Resource: ").trim_end_matches('.')).collect();
            format!("busy: {}", because.join(", "))
        }
        RayWorkerState::Draining => "draining: it goes when what runs there has ended".to_owned(),
        RayWorkerState::Idle { since } => format!("idle for {}", span(now.since(*since))),
        RayWorkerState::NotJoined => "not in Ray, which it has not joined yet or has left".to_owned(),
        RayWorkerState::Unknown => "unknown: the head tells nothing (`ebb status` says why)".to_owned(),
    }
}
