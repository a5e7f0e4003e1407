//! How fast the model of kube-scheduler is, on clusters of three sizes: pods that fit, and pods that wait while nodes
//! join one by one and while other pods end.
//!
//! `cargo run --release -p ebb-sim --example scheduler`

use std::time::Instant;

use ebb_core::kubernetes::{Node, Pod};
use ebb_core::resources::Resources;
use ebb_core::time;
use ebb_sim::scheduler::{Event, Scheduler};

const NOW: time::Instant = time::Instant::from_millis(0);

fn main() {
    println!("{:>6} {:>7} {:>14} {:>14} {:>16}", "nodes", "shapes", "bound/s", "waiting/s", "node joins, µs");
    for nodes in [10, 1000, 5000] {
        for shapes in [1, 20] {
            measure(nodes, shapes);
        }
    }
}

fn measure(nodes: u64, shapes: u64) {
    let mut scheduler = Scheduler::new(1);
    for index in 0..nodes {
        scheduler.handle(NOW, Event::NodeApplied(node(index)));
    }
    // Four of the largest shape fill a node.
    let pods: Vec<_> = (0..nodes * 4).map(|index| pod(index, index % shapes)).collect();
    let (bound, fitting) = send(&mut scheduler, pods);
    let pods: Vec<_> = (nodes * 4..nodes * 4 + 5000).map(|index| pod(index, 1000 + index % shapes)).collect();
    let (_, waiting) = send(&mut scheduler, pods);
    let begun = Instant::now();
    let mut joined = 0;
    for index in nodes..nodes + 500 {
        joined += scheduler.handle(NOW, Event::NodeApplied(node(index))).len();
    }
    let join = begun.elapsed().as_secs_f64() / 500.0 * 1e6;
    assert!(bound as u64 == nodes * 4 && joined > 0, "{bound} pods bound, and {joined} to the nodes that joined");
    println!("{nodes:>6} {shapes:>7} {fitting:>14.0} {waiting:>14.0} {join:>16.1}");
}

/// Sends pods one by one; how many actions came back, and pods per second.
fn send(scheduler: &mut Scheduler, pods: Vec<Pod>) -> (usize, f64) {
    let (count, begun) = (pods.len(), Instant::now());
    let actions = pods.into_iter().map(|pod| scheduler.handle(NOW, Event::PodApplied(pod)).len()).sum();
    (actions, count as f64 / begun.elapsed().as_secs_f64())
}

fn node(index: u64) -> Node {
    let mut allocatable = Resources::default();
    for (name, amount) in [("cpu", 8000), ("memory", 32 << 30), ("pods", 110)] {
        allocatable.set(name, amount);
    }
    Node { name: format!("node-{index}"), ready: true, allocatable, ..Node::default() }
}

fn pod(index: u64, shape: u64) -> Pod {
    let mut requests = Resources::default();
    // Shapes from 1000 on are for an empty node.
    let cpu = if shape < 1000 { 2000 - shape } else { 8000 - shape % 1000 };
    for (name, amount) in [("cpu", cpu), ("memory", 1 << 30), ("pods", 1)] {
        requests.set(name, amount);
    }
    Pod { uid: format!("pod-{index}"), requests, ..Pod::default() }
}
