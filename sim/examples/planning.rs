//! How long the coordinator's rules take to find room for a burst: `cargo xtask bench planning`. The arguments are work
//! as `kind:pods:nodes`; prints a JSON object for each, with the time of the one decision that answers the burst, and by
//! how much the process had grown before it.
//!
//! - `fill`: pods of twenty shapes, for nodes that are there and have room for all.
//! - `types`: pods of fifty shapes and no nodes, with 400 groups to choose from.
//! - `apart`: pods that keep away from their like, node by node, a hundred kinds of them, and no nodes.
//! - `near`: the same pods, which keep away from nobody.
//! - `diverse`: the mix of Karpenter's scheduling benchmark and no nodes, with 400 groups to choose from: a sixth each of
//!   plain pods, of pods spread over zones and over nodes, of pods to be near to others by node and by zone, and of pods that
//!   keep away from their like.
//! - `even`: pods that are to be spread over the nodes that are there and over their three zones.
//! - `crowd`: one pod, and nodes that are full of others, of a hundred templates.
//! - `shrink`: nodes that are idle, with the pods on them; so many drains may run at once that all can go whose pods fit
//!   elsewhere.

use std::collections::BTreeMap;
use std::time::{Duration, Instant as Wall};

use ebb_core::classify::{Class, Utilization};
use ebb_core::fleet::{Action, Event, Fleet, GroupState, Instance};
use ebb_core::kubernetes::{Node, Operator, Pod, PodTerm, Requirement, Spread, TaintEffect, Toleration};
use ebb_core::policy::{Group, Policy, ScaleDown, ScaleUp};
use ebb_core::report::Report;
use ebb_core::resources::Resources;
use ebb_core::time::Instant;

const ZONE: &str = "topology.kubernetes.io/zone";
const HOSTNAME: &str = "kubernetes.io/hostname";

struct Work {
    groups: BTreeMap<String, Group>,
    nodes: Vec<Node>,
    /// One at a time, as a watch brings them.
    pods: Box<dyn Iterator<Item = Pod>>,
}

fn main() {
    for argument in std::env::args().skip(1) {
        let parts: Vec<_> = argument.split(':').collect();
        let [kind, pods, nodes] = parts[..] else { panic!("{argument}: expected kind:pods:nodes") };
        let number = |text: &str| text.parse().unwrap_or_else(|error| panic!("{argument}: {error}"));
        let (pods, nodes): (u32, u32) = (number(pods), number(nodes));
        let work = match kind {
            "fill" => fill(pods, nodes),
            "types" => types(pods),
            "apart" => apart(pods),
            "near" => near(pods),
            "crowd" => crowd(pods, nodes),
            "diverse" => diverse(pods),
            "even" => even(pods, nodes),
            "shrink" => shrink(pods, nodes),
            _ => panic!("{argument}: there is no such kind"),
        };
        let Decided { seconds, grown_mib, actions } = decide(work);
        let raised = |action: &Action| if let Action::SetDesired { from, to, .. } = action { to - from } else { 0 };
        let wanted: u32 = actions.iter().map(raised).sum();
        let drained = actions.iter().filter(|action| matches!(action, Action::Drain { .. })).count();
        println!(
            "{{\"kind\": \"{kind}\", \"pods\": {pods}, \"nodes\": {nodes}, \"seconds\": {seconds:.4}, \"mib\": {grown_mib:.2}, \
             \"wanted\": {wanted}, \"drained\": {drained}}}"
        );
    }
}

struct Decided {
    seconds: f64,
    grown_mib: f64,
    actions: Vec<Action>,
}

/// The picture is complete but for the groups; their description lets the rules decide.
fn decide(work: Work) -> Decided {
    let before = resident_mib();
    let now = Instant::from_millis(1_767_603_600_000);
    let scale_up = ScaleUp { pending_for: Duration::ZERO, batch_window: Duration::ZERO, ..ScaleUp::default() };
    let described = |(name, group): (&String, &Group)| GroupState {
        name: name.clone(),
        min: 0,
        max: group.max,
        desired: if name == "there" { work.nodes.len() as u32 } else { 0 },
        instances: work
            .nodes
            .iter()
            .filter(|_| name == "there")
            .map(|node| Instance {
                id: node.instance.clone().expect("all have one"),
                live: true,
                waits: false,
                zone: None,
            })
            .collect(),
        ..GroupState::default()
    };
    let groups = work.groups.iter().map(described).collect();
    let nodes = u32::try_from(work.nodes.len()).expect("few nodes");
    let scale_down = ScaleDown { consolidate: true, max_parallel_drains: nodes.max(1), ..ScaleDown::default() };
    let mut fleet = Fleet::new(Policy { groups: work.groups, scale_up, scale_down, ..Policy::default() });
    let reports: Vec<_> = work.nodes.iter().map(|node| idle(node, now)).collect();
    work.nodes.into_iter().for_each(|node| _ = fleet.handle(now, Event::NodeApplied(node)));
    let waits = |pod: Pod| Pod { unschedulable_since: Some(now).filter(|_| pod.node.is_none()), ..pod };
    work.pods.map(waits).for_each(|pod| _ = fleet.handle(now, Event::PodApplied(pod)));
    reports.into_iter().for_each(|report| _ = fleet.handle(now, Event::Report(report)));
    fleet.handle(now, Event::Leading(true));
    let asked = fleet.handle(now, Event::Synced(true));
    let asked = asked.into_iter().find(|action| matches!(action, Action::Describe { .. }));
    let asked = asked.expect("groups are described before anything is done about them");
    let grown_mib = resident_mib() - before;
    let start = Wall::now();
    let actions = fleet.handle(now, Event::Groups { asked, groups });
    Decided { seconds: start.elapsed().as_secs_f64(), grown_mib, actions }
}

fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux tells it");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("it is a number") / 1024.0
}

fn fill(pods: u32, nodes: u32) -> Work {
    let group = group(4_000, 16, nodes);
    let shape = |number: u32| pod(number, 100 + 10 * u64::from(number % 20), 64 + 16 * u64::from(number % 20));
    Work {
        nodes: (0..nodes).map(|number| node(number, &group)).collect(),
        groups: BTreeMap::from([("there".to_owned(), group)]),
        pods: Box::new((0..pods).map(shape)),
    }
}

/// As pods of Deployments are, once their API server has filled them in.
fn crowd(pods: u32, nodes: u32) -> Work {
    let group = group(4_000, 16, nodes);
    let tolerates = |taint: &str| Toleration {
        key: Some(format!("node.kubernetes.io/{taint}")),
        value: None,
        effect: Some(TaintEffect::NoExecute),
    };
    let tolerations = [tolerates("not-ready"), tolerates("unreachable")];
    let of_template = move |number: u32| {
        let app = format!("application-{:02}", number % 100);
        let labels = [
            ("app.kubernetes.io/name", &*app),
            ("app.kubernetes.io/part-of", "shop"),
            ("pod-template-hash", "7d4f9c6b58"),
        ];
        Pod {
            uid: format!("8c1f3a52-6d0e-4b7a-9f21-{number:012}"),
            name: format!("{app}-7d4f9c6b58-{number:06}"),
            node: Some(node_name(number % nodes)),
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            tolerations: tolerations.to_vec(),
            ..pod(number, 125, 256)
        }
    };
    Work {
        nodes: (0..nodes).map(|number| node(number, &group)).collect(),
        groups: BTreeMap::from([("new".to_owned(), Group { max: 1, ..group.clone() }), ("there".to_owned(), group)]),
        pods: Box::new((0..pods).map(of_template).chain([pod(pods, 500, 256)])),
    }
}

fn types(pods: u32) -> Work {
    let group = |number: u32| {
        let cpu = 2_000 * u64::from(1 + number % 48);
        (format!("type-{number:03}"), group(cpu, 2 + u64::from(number) % 9 * cpu / 2_000, 10_000))
    };
    let shape = |number: u32| pod(number, 100 * (1 + u64::from(number % 50)), 128 * (1 + u64::from(number * 7 % 50)));
    Work { nodes: Vec::new(), groups: (0..400).map(group).collect(), pods: Box::new((0..pods).map(shape)) }
}

fn diverse(pods: u32) -> Work {
    let Work { mut groups, .. } = types(0);
    for (number, group) in groups.values_mut().enumerate() {
        group.labels.insert(ZONE.to_owned(), format!("zone-{}", number % 3));
    }
    let near = |key: &str, label: Requirement| PodTerm {
        namespaces: Some(vec!["default".to_owned()]),
        selector: Some(vec![label]),
        topology_key: key.to_owned(),
    };
    let shape = move |number: u32| {
        // One of seven values for its label, and for the one that it looks for.
        let label = |salt| char::from(b'a' + u8::try_from(pick(number, salt, 7)).expect("below seven"));
        let labelled = |key: &str| BTreeMap::from([(key.to_owned(), label(1).to_string())]);
        let looks_for =
            |key: &str| Requirement { key: key.to_owned(), operator: Operator::In, values: vec![label(2).to_string()] };
        let plain = pod(
            number,
            [100, 250, 500, 1000, 1500][pick(number, 3, 5) as usize],
            [100, 256, 512, 1024, 2048, 4096][pick(number, 4, 6) as usize],
        );
        let spread = |key| Pod {
            labels: labelled("my-label"),
            spread: vec![Spread { selector: Some(vec![looks_for("my-label")]), ..spread("", key) }],
            ..plain.clone()
        };
        let affine = |key| Pod {
            labels: labelled("my-affinity"),
            pod_affinity: vec![near(key, looks_for("my-affinity"))],
            ..plain.clone()
        };
        match number % 6 {
            0 => Pod { labels: labelled("my-label"), ..plain },
            1 => spread(ZONE),
            2 => spread(HOSTNAME),
            3 => affine(HOSTNAME),
            4 => affine(ZONE),
            _ => Pod { pod_anti_affinity: vec![near(HOSTNAME, is("nginx"))], ..of_app(plain, "nginx") },
        }
    };
    Work { nodes: Vec::new(), groups, pods: Box::new((0..pods).map(shape)) }
}

/// One of so many, as if by chance.
fn pick(number: u32, salt: u32, of: u32) -> u32 {
    (number.wrapping_mul(7).wrapping_add(salt).wrapping_mul(2_654_435_761) >> 16) % of
}

/// Over nodes or zones, with pods of the same application.
fn spread(app: &str, key: &str) -> Spread {
    Spread {
        max_skew: 1,
        min_domains: 1,
        selector: Some(vec![is(app)]),
        topology_key: key.to_owned(),
        honors_affinity: true,
        honors_taints: false,
    }
}

fn apart(pods: u32) -> Work {
    let shape = |number: u32| {
        let app = format!("app-{}", number % 100);
        let term = PodTerm {
            namespaces: Some(vec!["default".to_owned()]),
            selector: Some(vec![is(&app)]),
            topology_key: HOSTNAME.to_owned(),
        };
        Pod { pod_anti_affinity: vec![term], ..of_app(pod(number, 100, 64), &app) }
    };
    let groups = BTreeMap::from([("new".to_owned(), group(4_000, 16, pods))]);
    Work { nodes: Vec::new(), groups, pods: Box::new((0..pods).map(shape)) }
}

fn near(pods: u32) -> Work {
    let work = apart(pods);
    let near = |pod| Pod { pod_anti_affinity: Vec::new(), ..pod };
    Work { pods: Box::new(work.pods.map(near)), ..work }
}

fn even(pods: u32, nodes: u32) -> Work {
    let shape = move |number: u32| {
        let app = format!("app-{}", number % 20);
        let spread = vec![spread(&app, ZONE), spread(&app, HOSTNAME)];
        Pod { spread, ..of_app(pod(number, 100, 64), &app) }
    };
    Work { pods: Box::new((0..pods).map(shape)), ..fill(0, nodes) }
}

fn shrink(pods: u32, nodes: u32) -> Work {
    let on = move |number: u32| Pod {
        node: Some(node_name(number % nodes)),
        ..pod(number, 38, 96 + 16 * u64::from(number % 4))
    };
    Work { pods: Box::new((0..pods).map(on)), ..fill(0, nodes) }
}

/// For an hour.
fn idle(node: &Node, now: Instant) -> Report {
    Report {
        node: node.name.clone(),
        node_uid: node.uid.clone(),
        agent_start: now,
        sequence: 1,
        sampled_at: now,
        class: Class::Idle { since: now.before(Duration::from_secs(3600)) },
        utilization: Utilization::default(),
        gpu_waste: None,
    }
}

fn group(cpu: u64, memory_gib: u64, max: u32) -> Group {
    let mut allocatable = Resources::default();
    allocatable.set("cpu", cpu - 80);
    allocatable.set("memory", (memory_gib << 30) - (memory_gib << 28));
    allocatable.set("pods", 110);
    Group {
        min: 0,
        max,
        instance_type: "m5.xlarge".to_owned(),
        labels: BTreeMap::new(),
        taints: Vec::new(),
        allocatable,
        unneeded_for: Duration::from_secs(600),
        ..Group::default()
    }
}

fn node_name(number: u32) -> String {
    format!("node-{number:05}")
}

fn node(number: u32, group: &Group) -> Node {
    let name = node_name(number);
    let zone = format!("zone-{}", number % 3);
    Node {
        uid: name.clone(),
        instance: Some(format!("i-{number:05}")),
        labels: BTreeMap::from([(ZONE.to_owned(), zone), (HOSTNAME.to_owned(), name.clone())]),
        ready: true,
        allocatable: group.allocatable.clone(),
        name,
        ..Node::default()
    }
}

fn pod(number: u32, cpu: u64, memory_mib: u64) -> Pod {
    let mut requests = Resources::default();
    requests.set("cpu", cpu);
    requests.set("memory", memory_mib << 20);
    requests.set("pods", 1);
    let name = format!("pod-{number:06}");
    Pod { uid: name.clone(), namespace: "default".to_owned(), name, requests, ..Pod::default() }
}

fn of_app(pod: Pod, app: &str) -> Pod {
    Pod { labels: BTreeMap::from([("app".to_owned(), app.to_owned())]), ..pod }
}

fn is(app: &str) -> Requirement {
    Requirement { key: "app".to_owned(), operator: Operator::In, values: vec![app.to_owned()] }
}
