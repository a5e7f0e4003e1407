//! `drain_suites.yaml`: that every test of the others is told, or not for a reason, by what there is, and that every case
//! of ours says where it comes from.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Suite {
    suite: String,
    #[serde(rename = "at")]
    _at: String,
    /// How many tests it has, so that none is forgotten.
    count: usize,
    tests: BTreeMap<String, Fate>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fate {
    #[serde(default)]
    told: Vec<String>,
    /// What is otherwise.
    #[serde(default)]
    but: String,
    /// Why it is not told.
    #[serde(default)]
    not: String,
}

#[derive(Deserialize)]
struct Scenario {
    name: String,
    #[serde(default)]
    like: String,
}

#[test]
fn every_test_of_the_others_is_told_or_says_why_not() {
    let suites: Vec<Suite> = serde_saphyr::from_str(include_str!("drain_suites.yaml")).unwrap();
    let scenarios: Vec<Scenario> = serde_saphyr::from_str(include_str!("drain_scenarios.yaml")).unwrap();
    let names: BTreeSet<&str> = scenarios.iter().map(|scenario| scenario.name.as_str()).collect();
    assert_eq!(names.len(), scenarios.len(), "two cases have the same name");
    let mut wrong = Vec::new();
    let mut tellers = BTreeSet::new();
    for suite in &suites {
        let Suite { suite, count, tests, .. } = suite;
        if tests.len() != *count {
            wrong.push(format!("{suite} has {count} tests, and here are {}", tests.len()));
        }
        for (test, fate) in tests {
            if fate.told.is_empty() == fate.not.is_empty() {
                wrong.push(format!("{suite}: {test}: it is either told or not"));
            }
            let missing = fate.told.iter().filter(|teller| !names.contains(teller.as_str()) && !is_test(teller));
            wrong.extend(missing.map(|teller| format!("{suite}: {test}: there is no {teller:?}")));
            tellers.extend(fate.told.iter().map(String::as_str));
        }
        let told = || tests.values().filter(|fate| !fate.told.is_empty());
        let otherwise = told().filter(|fate| !fate.but.is_empty()).count();
        println!("{suite}: {} of {count} are told, {otherwise} of them with another end", told().count());
    }
    let lost = scenarios.iter().filter(|it| it.like.is_empty() && !tellers.contains(it.name.as_str()));
    wrong.extend(lost.map(|it| format!("{:?} says not where it comes from", it.name)));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether `FILE: FUNCTION` names a test.
fn is_test(teller: &str) -> bool {
    let Some((file, function)) = teller.split_once(": ") else { return false };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = std::fs::read_to_string(root.join(file)).unwrap_or_default();
    let Some((before, _)) = text.split_once(&format!("fn {function}(")) else { return false };
    // Of what stands between the function before and this one.
    before.rsplit("\n\n").next().is_some_and(|attributes| attributes.contains("test"))
}
