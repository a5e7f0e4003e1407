use super::*;

fn at(second: u64) -> Instant {
    Instant::from_millis(1_000_000 + second * 1000)
}

fn word(pod: &str, cpu_nanocores: u64) -> NodeUsage {
    let amount = Amount { cpu_nanocores, memory_bytes: 1 };
    let window = Duration::from_secs(10);
    let pod = PodUsage { uid: pod.into(), at: at(0), window, containers: vec![("work".into(), amount)], signals: None };
    NodeUsage { node: Some(Sample { at: at(0), window, amount }), pods: vec![pod] }
}

fn pod(uid: &str, name: &str, node: &str) -> kubernetes::Pod {
    let node = Some(node.to_owned());
    kubernetes::Pod { uid: uid.into(), namespace: "ml".into(), name: name.into(), node, ..kubernetes::Pod::default() }
}

fn node(name: &str, uid: &str) -> kubernetes::Node {
    kubernetes::Node { name: name.into(), uid: uid.into(), ..kubernetes::Node::default() }
}

fn known() -> Usages {
    let mut usages = Usages::default();
    usages.node_applied(&node("a", "a-1"));
    usages.node_applied(&node("b", "b-1"));
    usages.pod_applied(&pod("p", "train-0", "a"));
    usages
}

fn cpu(usages: &Usages, now: Instant) -> Option<u64> {
    usages.pod(now, "ml", "train-0").map(|listed| listed.usage.containers[0].1.cpu_nanocores)
}

#[test]
fn a_word_that_comes_twice_or_late_changes_nothing() {
    let mut usages = known();
    usages.take(at(0), "a", (at(0), 2), word("p", 2));
    usages.take(at(1), "a", (at(0), 2), word("p", 3));
    usages.take(at(1), "a", (at(0), 1), word("p", 1));
    assert_eq!(cpu(&usages, at(1)), Some(2));
    usages.take(at(2), "a", (at(1), 1), word("p", 4));
    assert_eq!(cpu(&usages, at(2)), Some(4), "its agent began anew");
}

#[test]
fn what_nobody_tells_of_is_missing_after_a_while_and_never_zero() {
    let mut usages = known();
    assert_eq!(usages.nodes(at(0)).count() + usages.pods(at(0), None).count(), 0);
    usages.take(at(0), "a", (at(0), 1), word("p", 7));
    assert_eq!((cpu(&usages, at(44)), usages.node(at(44), "a").is_some()), (Some(7), true));
    assert_eq!((cpu(&usages, at(45)), usages.node(at(45), "a").is_some()), (None, false));
    usages.take(at(50), "a", (at(0), 2), NodeUsage::default());
    assert_eq!((cpu(&usages, at(50)), usages.node(at(50), "a").is_some()), (None, false), "it said so itself");
}

#[test]
fn an_agent_speaks_of_its_own_pods_only() {
    let mut usages = known();
    usages.take(at(0), "b", (at(0), 1), word("p", 7));
    assert_eq!(cpu(&usages, at(0)), None);
    usages.pod_applied(&pod("p", "train-0", "b"));
    assert_eq!(cpu(&usages, at(0)), Some(7));
}

#[test]
fn another_object_of_the_same_name_is_another() {
    let mut usages = known();
    usages.take(at(0), "a", (at(0), 1), word("p", 7));
    usages.pod_applied(&pod("q", "train-0", "a"));
    usages.pod_deleted("p");
    assert_eq!(cpu(&usages, at(0)), None);
    usages.take(at(1), "a", (at(0), 2), word("q", 8));
    assert_eq!(cpu(&usages, at(1)), Some(8));
    usages.node_applied(&node("a", "a-2"));
    usages.node_deleted("a", "a-1");
    assert_eq!(cpu(&usages, at(1)), None);
    usages.take(at(2), "a", (at(0), 3), word("q", 9));
    assert_eq!(cpu(&usages, at(2)), Some(9));
}

#[test]
fn lists_are_in_order_and_of_one_namespace() {
    let mut usages = known();
    for (uid, namespace, name) in [("1", "ml", "b"), ("2", "a", "z"), ("3", "ml", "a"), ("4", "mlx", "a")] {
        usages.pod_applied(&kubernetes::Pod { namespace: namespace.into(), ..pod(uid, name, "a") });
    }
    let pods = ["1", "2", "3", "4"].map(|uid| word(uid, 1).pods.remove(0));
    usages.take(at(0), "a", (at(0), 1), NodeUsage { node: None, pods: pods.into() });
    let names = |namespace| -> Vec<String> {
        usages.pods(at(0), namespace).map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect()
    };
    assert_eq!(names(None), ["a/z", "ml/a", "ml/b", "mlx/a"]);
    assert_eq!(names(Some("ml")), ["ml/a", "ml/b"]);
}

#[test]
fn a_pod_that_is_over_or_waits_is_not_listed() {
    let mut usages = known();
    usages.take(at(0), "a", (at(0), 1), word("p", 7));
    usages.pod_applied(&kubernetes::Pod { finished: true, ..pod("p", "train-0", "a") });
    assert_eq!(cpu(&usages, at(0)), None);
}

#[test]
fn what_pods_have_in_common_is_kept_once_and_no_longer_than_they_are_there() {
    let mut usages = Usages::default();
    let of = |uid: &str, name: &str, app: &str| kubernetes::Pod {
        labels: Labels::from([("app".to_owned(), app.to_owned())]),
        ..pod(uid, name, "a")
    };
    let kept = |usages: &Usages| (usages.labels.iter().count(), usages.labels.sharers(), usages.namespaces.sharers());
    usages.pod_applied(&of("1", "a", "ray"));
    usages.pod_applied(&of("2", "b", "ray"));
    assert_eq!(kept(&usages), (1, 2, 2));
    usages.pod_applied(&of("2", "b", "web"));
    assert_eq!(kept(&usages), (2, 2, 2), "its labels changed");
    usages.pod_applied(&of("3", "b", "ray"));
    assert_eq!(kept(&usages), (1, 2, 2), "another one of the name");
    for uid in ["2", "1", "3", "3"] {
        usages.pod_deleted(uid);
    }
    assert_eq!(kept(&usages), (0, 0, 0));
    assert!(usages.pods.is_empty() && usages.keys.is_empty());
}
