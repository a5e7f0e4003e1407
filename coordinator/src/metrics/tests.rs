use std::collections::BTreeMap;

use ebb_core::reason::Reason;
use ebb_core::view::{Group, RayCluster};
use prometheus_client::encoding::text;

use super::*;

/// What each family means, by its name and kind as a sample and a row of the documentation have them.
fn families(page: &str) -> BTreeMap<(String, String), String> {
    let mut families = BTreeMap::new();
    let mut help = "";
    for line in page.lines() {
        if let Some((_, found)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            help = found.trim_end_matches('.');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let total = if kind == "counter" { "_total" } else { "" };
            families.insert((format!("{name}{total}"), kind.to_owned()), help.to_owned());
        }
    }
    families
}

/// A registry writes a family with labels only when it has a row.
fn full_page() -> String {
    let mut registry = Registry::default();
    let metrics = Metrics::register_both(&mut registry);
    let (group, because) = ("cpu".to_owned(), Reason::NodeGone);
    let asked = Action::SetDesired { group: group.clone(), from: 1, to: 2, because: because.clone() };
    metrics.decision(&asked);
    metrics.decided(Duration::ZERO);
    metrics.call(&asked, Some(Failure::Denied), Duration::ZERO);
    let (instance, node) = ("i-1".to_owned(), "node-1".to_owned());
    metrics.call(&Action::Terminate { group: group.clone(), instance, node, because }, None, Duration::ZERO);
    metrics.aws_call("SetDesiredCapacity", None);
    metrics.report(Told::Accepted);
    metrics.brokered("evict", Brokered::Done);
    metrics.ray_drain(RayDrain::Accepted);
    metrics.ray_poll(None);
    let (name, readable) = ("ml/train".to_owned(), true);
    let (problem, read_at, waiting, groups) = (None, None, None, vec![]);
    let ray = RayCluster { name, readable, problem, read_at, waiting, anticipated: 0, without_object: false, groups };
    let instance_type = "m5.xlarge".to_owned();
    let group = Group {
        name: group,
        instance_type,
        observed: true,
        min: 0,
        max: 1,
        desired: None,
        instances: 0,
        failing: None,
    };
    metrics.show(&Cluster {
        leading: true,
        synced: true,
        groups: vec![group],
        nodes: vec![],
        waiting: vec![],
        ray: vec![ray],
    });
    let mut page = String::new();
    text::encode(&mut page, &registry).unwrap();
    page
}

#[test]
fn the_documentation_has_what_the_page_has_and_nothing_else() {
    let documentation = include_str!("../../../docs/metrics.md");
    let (_, section) = documentation.split_once("\n## The coordinator\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let rows: BTreeMap<_, _> = section
        .lines()
        .filter_map(|row| {
            let [_, name, kind, _labels, help, _] = &row.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
                return None;
            };
            let name = name.strip_prefix('`')?.strip_suffix('`')?;
            Some(((name.to_owned(), (*kind).to_owned()), help.trim_end_matches('.').to_owned()))
        })
        .collect();
    assert_eq!(families(&full_page()), rows);
}
