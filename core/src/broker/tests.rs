use serde_json::json;

use super::*;
use crate::time::Instant;

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn own() -> Own {
    Own { node: "n".into(), node_uid: "n-uid".into() }
}

#[test]
fn an_agent_s_node_is_that_of_the_very_pod_of_its_token() {
    let check = |change: &dyn Fn(&mut Claims, &mut Found), expected: Result<Own, Refusal>| {
        let mut claims =
            Claims { pod: text("agent"), pod_uid: text("p-uid"), node: text("n"), node_uid: text("n-uid") };
        let made = |second: u64| Some(Instant::from_millis(second * 1000));
        let mut found = Found {
            pod_uid: text("p-uid"),
            pod_made: made(20),
            node: text("n"),
            node_uid: text("n-uid"),
            node_made: made(10),
        };
        change(&mut claims, &mut found);
        assert_eq!(own_node(&claims, &found), expected, "{claims:?}, {found:?}");
    };
    check(&|_, _| {}, Ok(own()));
    check(&|claims, _| claims.pod = None, Err(Refusal::NotBound));
    check(&|claims, _| claims.pod_uid = None, Err(Refusal::NotBound));
    check(&|_, found| *found = Found::default(), Err(Refusal::PodGone("agent".into())));
    check(&|_, found| found.pod_uid = text("new"), Err(Refusal::PodGone("agent".into())));
    check(&|_, found| found.node = None, Err(Refusal::NoNode("agent".into())));
    let moved = Refusal::Moved { claimed: "n".into(), found: "m".into() };
    check(&|_, found| found.node = text("m"), Err(moved));
    check(&|_, found| found.node_uid = None, Err(Refusal::OtherNode("n".into())));
    check(&|_, found| found.node_uid = text("new"), Err(Refusal::OtherNode("n".into())));

    // Before Kubernetes 1.30.
    let older = |claims: &mut Claims| (claims.node, claims.node_uid) = (None, None);
    check(&|claims, _| older(claims), Ok(own()));
    let found_anew = |found: &mut Found| {
        found.node_uid = text("new");
        found.node_made = Some(Instant::from_millis(20_001));
    };
    check(&|claims, found| (older(claims), found_anew(found)).1, Err(Refusal::OtherNode("n".into())));
    check(&|claims, found| (older(claims), found.pod_made = None).1, Err(Refusal::OtherNode("n".into())));
    check(&|claims, found| (older(claims), found.node_made = None).1, Err(Refusal::OtherNode("n".into())));
    check(&|claims, found| (older(claims), found.pod_made = found.node_made).1, Ok(own()));
}

#[test]
fn of_a_node_only_what_a_drain_changes_is_let_through() {
    let annotations = json!({"metadata": {"resourceVersion": "7", "annotations": {"ebb.dev/drain": null, "ebb.dev/drain-progress": "x"}}});
    let label = json!({"metadata": {"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": ""}}});
    let cordon = |to: Value| json!({"spec": {"unschedulable": to}});
    for patch in [annotations, label, cordon(true.into()), cordon(false.into()), cordon(Value::Null), json!({})] {
        let mut expected = patch.clone();
        expected["metadata"]["uid"] = "n-uid".into();
        assert_eq!(node_patch(&own(), "n", patch).unwrap(), expected);
    }

    let check = |patch: Value, expected: &str| {
        assert_eq!(node_patch(&own(), "n", patch).unwrap_err().to_string(), expected);
    };
    let field = |field: &str| format!("an agent may not set {field}: nothing of a drain");
    check(json!({"spec": {"taints": []}}), &field("spec.taints"));
    check(json!({"spec": {"unschedulable": true, "later": 1}}), &field("spec.later"));
    check(json!({"spec": {"$patch": "replace", "unschedulable": true}}), &field("spec.$patch"));
    check(json!({"metadata": {"labels": {"pool": "gpu"}}}), &field("metadata.labels.pool"));
    check(json!({"metadata": {"annotations": {"other": "x"}}}), &field("metadata.annotations.other"));
    check(json!({"metadata": {"finalizers": ["x"]}}), &field("metadata.finalizers"));
    check(json!({"metadata": {"ownerReferences": []}}), &field("metadata.ownerReferences"));
    check(json!({"metadata": {"uid": "n-uid"}}), &field("metadata.uid"));
    check(json!({"status": {}}), &field("status"));
    check(json!({"$patch": "delete"}), &field("$patch"));
    let value = |field: &str, expected: &str| format!("an agent may set {field} only to {expected}");
    // By null a merge patch takes away all that is there.
    check(json!({"metadata": null}), &value("metadata", "an object"));
    check(json!({"metadata": {"labels": null}}), &value("metadata.labels", "an object"));
    check(json!({"spec": null}), &value("spec", "an object"));
    check(Value::Null, &value("it", "an object"));
    check(json!([{"op": "remove", "path": "/spec"}]), &value("it", "an object"));
    check(cordon("yes".into()), &value("spec.unschedulable", "true, false or null"));
    check(
        json!({"metadata": {"annotations": {"ebb.dev/drain": {}}}}),
        &value("metadata.annotations.ebb.dev/drain", "a text or null"),
    );
    check(json!({"metadata": {"resourceVersion": null}}), &value("metadata.resourceVersion", "a text"));

    let other = node_patch(&own(), "m", cordon(true.into())).unwrap_err();
    assert_eq!(other.to_string(), "node m is not the agent's own, which is n");
    let long = node_patch(&own(), "n", json!({"a\nb".repeat(100): 1})).unwrap_err().to_string();
    assert!(long.len() < 150 && !long.contains('\n'), "{long}");
}

#[test]
fn of_a_status_only_the_conditions_of_a_drain_are_let_through() {
    let condition = |change: &dyn Fn(&mut Value)| {
        let mut condition = json!({"type": "Drained", "status": "True", "reason": "R", "message": "m",
            "lastHeartbeatTime": "2026-11-28T00:00:00Z", "lastTransitionTime": "2026-11-28T00:00:00Z"});
        change(&mut condition);
        json!({"metadata": {"resourceVersion": "7"}, "status": {"conditions": [condition]}})
    };
    for name in ["Drained", "DrainInProgress", "MaintenancePlanned"] {
        let patch = status_patch(&own(), "n", condition(&|it| it["type"] = name.into())).unwrap();
        assert_eq!(patch["metadata"]["uid"], "n-uid");
    }
    let check = |patch: Value, expected: &str| {
        let said = status_patch(&own(), "n", patch).unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    };
    check(condition(&|it| it["type"] = "Ready".into()), "status.conditions.type only to Drained, DrainInProgress");
    check(condition(&|it| it["$patch"] = "delete".into()), "status.conditions.$patch");
    check(condition(&|it| it["status"] = "Maybe".into()), "status.conditions.status only to");
    check(
        json!({"status": {"conditions": [], "$setElementOrder/conditions": []}}),
        "status.$setElementOrder/conditions",
    );
    check(json!({"status": {"conditions": null}}), "a list");
    check(json!({"status": {"capacity": {"nvidia.com/gpu": "8"}}}), "status.capacity");
    check(json!({"metadata": {"annotations": {"ebb.dev/drain": "x"}}}), "metadata.annotations");
    check(json!({"metadata": {"labels": {"pool": "x"}}}), "metadata.labels");
    check(json!({"spec": {"unschedulable": true}}), "spec");
    assert!(matches!(status_patch(&own(), "m", condition(&|_| {})), Err(Refusal::NotOwn { .. })));
}

#[test]
fn a_pod_is_evicted_and_deleted_by_uid_and_with_nothing_else_said() {
    let removal = |grace_seconds, dry_run| Removal {
        pod: Target { namespace: "ml".into(), name: "train-0".into(), uid: "p-uid".into() },
        grace_seconds,
        dry_run,
    };
    let evict = |change: &dyn Fn(&mut Value)| {
        let mut body = json!({"apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": "train-0", "namespace": "ml"},
            "deleteOptions": {"preconditions": {"uid": "p-uid"}, "gracePeriodSeconds": null}});
        change(&mut body);
        eviction("ml", "train-0", &body).map_err(|refusal| refusal.to_string())
    };
    assert_eq!(evict(&|_| {}), Ok(removal(None, false)));
    assert_eq!(evict(&|it| it["deleteOptions"]["gracePeriodSeconds"] = 7.into()), Ok(removal(Some(7), false)));
    let refused = |change: &dyn Fn(&mut Value), expected: &str| {
        let said = evict(change).unwrap_err();
        assert!(said.contains(expected), "{said}");
    };
    refused(&|it| it["deleteOptions"]["preconditions"] = json!({}), "must name its pod by UID");
    refused(&|it| it["deleteOptions"] = Value::Null, "must name its pod by UID");
    refused(&|it| it["deleteOptions"]["propagationPolicy"] = "Foreground".into(), "deleteOptions.propagationPolicy");
    refused(&|it| it["deleteOptions"]["dryRun"] = json!(["All"]), "deleteOptions.dryRun");
    refused(&|it| it["deleteOptions"]["gracePeriodSeconds"] = (-1).into(), "whole seconds");
    refused(
        &|it| it["deleteOptions"]["preconditions"]["resourceVersion"] = "7".into(),
        "preconditions.resourceVersion",
    );
    refused(&|it| it["metadata"]["labels"] = json!({}), "metadata.labels");
    refused(&|it| it["kind"] = "Pod".into(), "kind only to Eviction");

    let delete = |body: Value| deletion("ml", "train-0", &body).map_err(|refusal| refusal.to_string());
    let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "p-uid"}, "dryRun": ["All"]});
    assert_eq!(delete(options), Ok(removal(Some(0), true)));
    assert!(delete(json!({"gracePeriodSeconds": 0})).unwrap_err().contains("by UID"));
    let orphan = json!({"orphanDependents": true, "preconditions": {"uid": "p-uid"}});
    assert!(delete(orphan).unwrap_err().contains("orphanDependents"));
    assert!(delete(Value::Null).unwrap_err().contains("by UID"));

    let named =
        |namespace: &str, name: &str| deletion(namespace, name, &json!({"preconditions": {"uid": "p-uid"}})).is_ok();
    assert!(named("ml", "train-0.a"));
    for odd in ["", "..", "a/b", "a?b", "a..b", "A", "a%2fb"] {
        assert!(!named("ml", odd) && !named(odd, "train-0"), "{odd}");
    }
}

#[test]
fn an_address_asks_for_a_dry_run_and_for_nothing_else() {
    let none: [(&str, &str); 0] = [];
    assert_eq!(is_dry_run(none), Ok(false));
    assert_eq!(is_dry_run([("fieldManager", "ebb-agent")]), Ok(false));
    assert_eq!(is_dry_run([("fieldManager", "ebb-agent"), ("dryRun", "All")]), Ok(true));
    for odd in [("force", "true"), ("dryRun", ""), ("fieldManager", "kubelet"), ("fieldValidation", "Ignore")] {
        assert_eq!(is_dry_run([odd]), Err(Refusal::Parameter(format!("{}={}", odd.0, odd.1))));
    }
}
