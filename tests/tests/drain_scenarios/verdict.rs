//! Whether a case ended as it says.

use std::collections::BTreeSet;

use ebb_tests::check_requests;
use k8s_openapi::api::core::v1::Node;

use super::case::End;
use super::scene::{Scene, message};

pub(super) async fn check(scene: &Scene<'_>, is: &Node) -> Result<(), String> {
    let case = scene.case;
    if !message(is).contains(&case.says) {
        return Err(format!("it says: {}", message(is)));
    }
    check_requests(&scene.proxy.seen(), scene.node, &scene.names.keys().cloned().collect(), false)?;
    check_asked(scene)?;
    let here: BTreeSet<String> = scene.drains.pods_on(scene.node).await.iter().map(|pod| scene.called(pod)).collect();
    match case.left.iter().find(|name| !here.contains(*name)) {
        Some(lost) => Err(format!("{lost} is gone")),
        None => Ok(()),
    }
}

fn check_asked(scene: &Scene<'_>) -> Result<(), String> {
    let case = scene.case;
    let asked = scene.asked();
    let set = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
    let as_said = if !case.any_of.is_empty() {
        asked.iter().any(|name| case.any_of.contains(name))
    } else {
        case.ends == End::Cancelled || set(&asked) == set(&case.gone)
    };
    if !as_said {
        return Err(format!("asked to go: {asked:?}"));
    }
    if !case.order.is_empty() && asked != case.order {
        return Err(format!("asked to go in this order: {asked:?}"));
    }
    let granted = scene.granted();
    let deleted = granted.iter().filter(|seen| seen.is_deletion());
    let deleted: BTreeSet<_> = deleted.map(|seen| scene.names[seen.uid()].clone()).collect();
    if deleted != set(&case.deleted) {
        return Err(format!("deleted past their budgets: {deleted:?}"));
    }
    if let Some(expected) = case.grace_within {
        for seen in &granted {
            let grace = seen.options()["gracePeriodSeconds"].as_u64();
            let fits = match expected {
                Some([least, most]) => grace.is_some_and(|grace| (least..=most).contains(&grace)),
                None => grace.is_none(),
            };
            if !fits {
                return Err(format!("asked to go with a grace of {grace:?}"));
            }
        }
    }
    Ok(())
}
