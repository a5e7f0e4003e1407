//! The sums that [`Cluster`] keeps, against counting everything anew by the definitions in Kubernetes' documentation; and
//! the cases that are easily got wrong.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::kubernetes::{
    HostPort, Operator, Pod, PodTerm, Requirement, SelectorTerm, Spread, Taint, TaintEffect, Toleration,
};
use crate::resources::Resources;
use crate::schedule::{Cluster, Misfit, Place, repels};

const ZONE: &str = "zone";

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn app(name: &str) -> Option<Vec<Requirement>> {
    Some(vec![Requirement { key: "app".into(), operator: Operator::In, values: vec![name.into()] }])
}

fn term(name: &str, key: &str) -> PodTerm {
    PodTerm { namespaces: Some(vec!["default".into()]), selector: app(name), topology_key: key.into() }
}

fn spread(name: &str, key: &str, max_skew: u32) -> Spread {
    Spread {
        max_skew,
        min_domains: 1,
        selector: app(name),
        topology_key: key.into(),
        honors_affinity: true,
        honors_taints: false,
    }
}

fn pod(name: &str) -> Pod {
    Pod { namespace: "default".into(), labels: labels(&[("app", name)]), ..Pod::default() }
}

/// Nodes with these labels and room for anything, and pods on them.
fn check(nodes: &[&[(&str, &str)]], there: &[(usize, Pod)], pod: &Pod, expected: &[Result<(), Misfit>]) {
    let names: Vec<_> = (0..nodes.len()).map(|index| format!("node-{index}")).collect();
    let nodes: Vec<_> = nodes.iter().map(|pairs| labels(pairs)).collect();
    let mut cluster = Cluster::default();
    for (name, labels) in names.iter().zip(&nodes) {
        cluster.add(Place { name: Some(name), labels, taints: &[], free: Resources::default(), zones: &[] });
    }
    for (node, pod) in there {
        let shape = cluster.shape(pod);
        cluster.put(*node, shape);
    }
    let shape = cluster.shape(pod);
    let found: Vec<_> = (0..nodes.len()).map(|node| cluster.admits(node, shape)).collect();
    assert_eq!(found, expected, "{pod:?}");
}

#[test]
fn a_pod_goes_near_those_it_wants_and_the_first_of_its_kind_anywhere() {
    let nodes: [&[_]; 3] = [&[(ZONE, "a")], &[(ZONE, "b")], &[]];
    let no = || Err(Misfit::PodAffinity { key: ZONE.into() });
    let near = |name: &str| Pod { pod_affinity: vec![term(name, ZONE)], ..pod("web") };
    check(&nodes, &[(0, pod("cache"))], &near("cache"), &[Ok(()), no(), no()]);
    check(&nodes, &[], &near("cache"), &[no(), no(), no()]);
    check(&nodes, &[], &near("web"), &[Ok(()), Ok(()), no()]);
    check(&nodes, &[(1, pod("web"))], &near("web"), &[no(), Ok(()), no()]);
    // Only a pod that all of its terms are about is near.
    let both = Pod { pod_affinity: vec![term("cache", ZONE), term("web", ZONE)], ..pod("web") };
    check(&nodes, &[(0, pod("cache")), (1, pod("web"))], &both, &[no(), no(), no()]);
}

#[test]
fn pods_keep_apart_whichever_of_them_says_so() {
    let nodes: [&[_]; 3] = [&[(ZONE, "a")], &[(ZONE, "b")], &[]];
    let far = Pod { pod_anti_affinity: vec![term("noisy", ZONE)], ..pod("quiet") };
    let own = Err(Misfit::PodAntiAffinity { key: ZONE.into() });
    check(&nodes, &[(0, pod("noisy")), (2, pod("noisy"))], &far, &[own, Ok(()), Ok(())]);
    let theirs = Err(Misfit::PodsAntiAffinity { key: ZONE.into() });
    check(&nodes, &[(1, far.clone()), (2, far)], &pod("noisy"), &[Ok(()), theirs, Ok(())]);
    let elsewhere = Pod { namespace: "other".into(), ..pod("noisy") };
    let far = Pod { pod_anti_affinity: vec![term("noisy", ZONE)], ..pod("quiet") };
    check(&nodes, &[(0, elsewhere)], &far, &[Ok(()), Ok(()), Ok(())]);
}

#[test]
fn pods_are_spread_over_the_nodes_that_they_may_use() {
    let nodes: [&[_]; 4] = [&[(ZONE, "a")], &[(ZONE, "b")], &[(ZONE, "c"), ("pool", "gpu")], &[]];
    let uneven = || Err(Misfit::Spread { key: ZONE.into() });
    let no_key = || Err(Misfit::TopologyKey { key: ZONE.into() });
    let web = Pod { spread: vec![spread("web", ZONE, 1)], ..pod("web") };
    let there = [(0, pod("web")), (2, pod("web"))];
    check(&nodes, &there, &web, &[uneven(), Ok(()), uneven(), no_key()]);
    // One that it does not select itself may join any.
    let other = Pod { spread: vec![spread("web", ZONE, 1)], ..pod("other") };
    check(&nodes, &there, &other, &[Ok(()), Ok(()), Ok(()), no_key()]);
    // Pods about to go do not count.
    let leaving = Pod { terminating: true, ..pod("web") };
    check(&nodes, &[(0, leaving)], &web, &[Ok(()), Ok(()), Ok(()), no_key()]);
    // Fewer zones than it wants: as if one stood empty.
    let wide = Pod { spread: vec![Spread { min_domains: 4, ..spread("web", ZONE, 1) }], ..pod("web") };
    check(
        &nodes,
        &[(0, pod("web")), (1, pod("web")), (2, pod("web"))],
        &wide,
        &[uneven(), uneven(), uneven(), no_key()],
    );
    // Zone c is none of its.
    let selector = || Err(Misfit::NodeAffinity);
    let outside = Requirement { key: "pool".into(), operator: Operator::DoesNotExist, values: vec![] };
    let node_affinity = vec![SelectorTerm { labels: vec![outside], names: vec![] }];
    let web = Pod { node_affinity, ..web };
    check(&nodes, &[(0, pod("web")), (1, pod("web"))], &web, &[Ok(()), Ok(()), selector(), no_key()]);
}

#[test]
fn a_port_is_taken_once_on_each_address() {
    let port =
        |ip: Option<&str>, protocol: &str| HostPort { ip: ip.map(Into::into), protocol: protocol.into(), port: 80 };
    let holding = |port| Pod { host_ports: vec![port], ..pod("web") };
    let taken = || Err(Misfit::HostPort { port: 80 });
    let check = |first, second, expected| check(&[&[]], &[(0, holding(first))], &holding(second), &[expected]);
    check(port(None, "TCP"), port(Some("10.0.0.1"), "TCP"), taken());
    check(port(Some("10.0.0.1"), "TCP"), port(Some("10.0.0.1"), "TCP"), taken());
    check(port(Some("10.0.0.1"), "TCP"), port(Some("10.0.0.2"), "TCP"), Ok(()));
    check(port(None, "TCP"), port(None, "UDP"), Ok(()));
}

#[test]
fn a_node_to_come_has_a_name_of_its_own_and_may_be_in_any_zone() {
    let none = BTreeMap::new();
    let place = || Place { name: None, labels: &none, taints: &[], free: Resources::default(), zones: &[] };
    let mut cluster = Cluster::default();
    let nodes = [cluster.add(place()), cluster.add(place())];
    let alone = Pod { pod_anti_affinity: vec![term("web", "kubernetes.io/hostname")], ..pod("web") };
    let shape = cluster.shape(&alone);
    cluster.put(nodes[0], shape);
    assert_eq!(cluster.admits(nodes[0], shape), Err(Misfit::PodAntiAffinity { key: "kubernetes.io/hostname".into() }));
    assert_eq!(cluster.admits(nodes[1], shape), Ok(()));
    assert_eq!(cluster.would_admit(&place(), shape), Ok(()));
    let even = Pod { spread: vec![spread("other", ZONE, 1)], ..pod("other") };
    let even = cluster.shape(&even);
    assert!(nodes.iter().all(|node| cluster.admits(*node, even).is_ok()));
}

/// As [`Cluster::admits`], by looking at every node and every pod.
fn recount(nodes: &[Node], pods: &[(usize, Pod)], at: usize, pod: &Pod) -> Result<(), Misfit> {
    let domain = |node: usize, key: &str| nodes[node].labels.get(key);
    let near = |node: usize, key: &str| domain(node, key).is_some() && domain(node, key) == domain(at, key);
    nodes[at].place().admits(pod)?;
    for even in &pod.spread {
        let Some(here) = domain(at, &even.topology_key) else {
            return Err(Misfit::TopologyKey { key: even.topology_key.clone() });
        };
        let has_keys = |node: usize| pod.spread.iter().all(|even| domain(node, &even.topology_key).is_some());
        let eligible = |node: usize| {
            let place = nodes[node].place();
            let meant = place.is_selected_by(&pod.node_selector, &pod.node_affinity).is_ok() || !even.honors_affinity;
            let tainted = place.taints.iter().any(|taint| repels(taint, &pod.tolerations)) && even.honors_taints;
            has_keys(node) && meant && !tainted
        };
        let selected = |it: &Pod| {
            it.namespace == pod.namespace && even.selector.iter().flatten().all(|wanted| wanted.holds(&it.labels))
        };
        let counts_others = even.selector.as_ref().is_some_and(|selector| !selector.is_empty());
        let count = |value: &String| {
            let counted = |(node, it): &&(usize, Pod)| {
                eligible(*node)
                    && domain(*node, &even.topology_key) == Some(value)
                    && selected(it)
                    && counts_others
                    && !it.terminating
            };
            pods.iter().filter(counted).count()
        };
        let domains: BTreeSet<_> = (0..nodes.len())
            .filter(|node| eligible(*node))
            .filter_map(|node| domain(node, &even.topology_key))
            .collect();
        let fewest = domains.iter().map(|value| count(value)).min().unwrap_or(0);
        let fewest = if domains.len() < even.min_domains as usize { 0 } else { fewest };
        if count(here) + usize::from(selected(pod)) > fewest + even.max_skew as usize {
            return Err(Misfit::Spread { key: even.topology_key.clone() });
        }
    }
    let is_wanted = |it: &Pod| pod.pod_affinity.iter().all(|term| term.is_about(it));
    let none_anywhere = !pods.iter().any(|(node, it)| {
        is_wanted(it) && pod.pod_affinity.iter().any(|term| domain(*node, &term.topology_key).is_some())
    });
    for term in &pod.pod_affinity {
        let found = pods.iter().any(|(node, it)| is_wanted(it) && near(*node, &term.topology_key));
        let is_first = none_anywhere && is_wanted(pod) && domain(at, &term.topology_key).is_some();
        if !found && !is_first {
            return Err(Misfit::PodAffinity { key: term.topology_key.clone() });
        }
    }
    let clash = |term: &PodTerm, a: &Pod, node: usize| term.is_about(a) && near(node, &term.topology_key);
    for term in &pod.pod_anti_affinity {
        if pods.iter().any(|(node, it)| clash(term, it, *node)) {
            return Err(Misfit::PodAntiAffinity { key: term.topology_key.clone() });
        }
    }
    for (node, it) in pods {
        if let Some(term) = it.pod_anti_affinity.iter().find(|term| clash(term, pod, *node)) {
            return Err(Misfit::PodsAntiAffinity { key: term.topology_key.clone() });
        }
    }
    Ok(())
}

#[derive(Clone, Debug)]
struct Node {
    name: String,
    labels: BTreeMap<String, String>,
    taints: Vec<Taint>,
}

impl Node {
    fn place(&self) -> Place<'_> {
        Place {
            name: Some(&self.name),
            labels: &self.labels,
            taints: &self.taints,
            free: Resources::default(),
            zones: &[],
        }
    }
}

const KEYS: [&str; 3] = [ZONE, "rack", "kubernetes.io/hostname"];

fn any_node() -> impl Strategy<Value = Node> {
    let value = |of: u32| prop::option::weighted(0.85, 0..of);
    (value(3), value(4), any::<u32>(), prop::bool::weighted(0.2)).prop_map(|(zone, rack, name, tainted)| {
        let name = format!("node-{name}");
        let pairs =
            [(ZONE, zone), ("rack", rack)].into_iter().filter_map(|(key, value)| Some((key, value?.to_string())));
        let pairs = pairs.chain([("kubernetes.io/hostname", name.clone())]);
        let labels = pairs.map(|(key, value)| (key.to_owned(), value)).collect();
        let taint = || Taint { key: "reserved".into(), value: String::new(), effect: TaintEffect::NoSchedule };
        Node { name, labels, taints: tainted.then(taint).into_iter().collect() }
    })
}

fn any_term() -> impl Strategy<Value = PodTerm> {
    let namespaces = prop::sample::select(vec![None, Some(vec!["default".to_owned()]), Some(vec!["other".to_owned()])]);
    let selector = prop::sample::select(vec![None, Some(vec![]), app("a"), app("b"), app("c")]);
    (namespaces, selector, prop::sample::select(&KEYS[..])).prop_map(|(namespaces, selector, key)| PodTerm {
        namespaces,
        selector,
        topology_key: key.into(),
    })
}

fn any_spread() -> impl Strategy<Value = Spread> {
    (any_term(), 1..3_u32, 1..5_u32, any::<bool>(), any::<bool>()).prop_map(|(term, max_skew, min_domains, a, t)| {
        Spread {
            max_skew,
            min_domains,
            // `None` is about no pod, which the recount does not know.
            selector: Some(term.selector.unwrap_or_default()),
            topology_key: term.topology_key,
            honors_affinity: a,
            honors_taints: t,
        }
    })
}

fn any_pod() -> impl Strategy<Value = Pod> {
    let few = || prop::collection::vec(any_term(), 0..2);
    let name = (prop::sample::select(vec!["default", "other"]), prop::sample::select(vec!["a", "b", "c"]));
    let selected = prop::option::weighted(0.2, 0..3_u32);
    let flags = (prop::bool::weighted(0.1), any::<bool>());
    let rules = (few(), few(), prop::collection::vec(any_spread(), 0..2));
    (name, selected, flags, rules).prop_map(|((namespace, app), zone, (terminating, tolerates), rules)| Pod {
        namespace: namespace.into(),
        labels: labels(&[("app", app)]),
        terminating,
        tolerations: if tolerates { vec![Toleration::default()] } else { vec![] },
        node_selector: zone.map(|zone| (ZONE.to_owned(), zone.to_string())).into_iter().collect(),
        pod_affinity: rules.0,
        pod_anti_affinity: rules.1,
        spread: rules.2,
        ..Pod::default()
    })
}

proptest! {
    /// Pods come one after the other, each with what those before it mean for it, onto the first node that takes it; some
    /// nodes come late, and some pods go.
    #[test]
    fn sums_say_what_counting_anew_says(
        nodes in prop::collection::vec(any_node(), 1..7),
        late in 0..3_usize,
        pods in prop::collection::vec((any_pod(), prop::option::weighted(0.3, any::<prop::sample::Index>())), 1..16),
    ) {
        let early = nodes.len().saturating_sub(late);
        let mut cluster = Cluster::default();
        let mut known = nodes[..early].to_vec();
        nodes[..early].iter().for_each(|node| _ = cluster.add(node.place()));
        let mut placed: Vec<(usize, Pod)> = Vec::new();
        for (turn, (pod, goes)) in pods.iter().enumerate() {
            if let Some(index) = goes.filter(|_| !placed.is_empty()) {
                let (node, gone) = placed.remove(index.index(placed.len()));
                // The shape is one that was asked for with this very pod.
                let pod = pods.iter().map(|(pod, _)| pod).find(|pod| **pod == gone).unwrap();
                let shape = cluster.shape(pod);
                cluster.take(node, shape);
            }
            if turn == pods.len() / 2 {
                nodes[early..].iter().for_each(|node| _ = cluster.add(node.place()));
                known = nodes.clone();
            }
            let shape = cluster.shape(pod);
            let found: Vec<_> = (0..known.len()).map(|node| cluster.admits(node, shape)).collect();
            let expected: Vec<_> = (0..known.len()).map(|node| recount(&known, &placed, node, pod)).collect();
            // Which key is named first may differ.
            let kinds = |all: &[Result<(), Misfit>]| all.iter().map(|it| it.as_ref().err().map(std::mem::discriminant)).collect::<Vec<_>>();
            prop_assert_eq!(kinds(&found), kinds(&expected), "{:?}\n{:?}\n{:?} where {:?}\n{:?}", found, expected, pod, placed, known);
            if let Some(node) = found.iter().position(Result::is_ok) {
                cluster.put(node, shape);
                placed.push((node, pod.clone()));
            }
        }
    }
}
