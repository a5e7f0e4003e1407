//! `ebb rbac check`: what holds the agents to their own nodes in this cluster, and whether it does.

mod findings;
mod look;
mod rights;
mod trial;

use std::io::{Write, stdout};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;

use crate::kubernetes;
use crate::sheet::Align::Left;
use crate::sheet::Sheet;
use crate::terminal;
use crate::text::width;
use findings::{Facts, Mode, State};

/// The rights of Ebb's programs in a cluster.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Says how this cluster can hold agents to their own nodes, whether it does, what is missing, and what is unsafe.
    ///
    /// Changes nothing. Asks for reviews of the ServiceAccounts' rights, and tries a token of an agent's with dry runs:
    /// best run by a cluster's admin. Ends with 1 if anything is missing or unsafe.
    Check(Check),
}

#[derive(clap::Args)]
pub(crate) struct Check {
    /// Where Ebb is, or is to be
    #[arg(short, long, value_name = "NAME", default_value = "ebb")]
    namespace: String,
    #[command(flatten)]
    kubernetes: kubernetes::Args,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let Command::Check(check) = &args.command;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let facts = runtime.block_on(look::facts(&check.kubernetes, &check.namespace))?;
    let (text, well) = text(&facts, &mut Sheet::new(terminal::columns().into(), terminal::takes_colours()));
    stdout().write_all(text.as_bytes()).context("print it")?;
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Also whether nothing is missing or unsafe.
fn text(facts: &Facts, sheet: &mut Sheet) -> (String, bool) {
    sheet.title(match facts.mode() {
        Some(Mode::Impersonation) => "Agents act as their nodes (agent.rights=impersonation)",
        Some(Mode::Admission) => "Agents act as themselves, held by admission (agent.rights=admission)",
        Some(Mode::Brokered) => "The coordinator writes for agents, which only read (agent.rights=brokered)",
        None if facts.agent.is_err() => "What holds agents to their own nodes could not be found out",
        None => "No agent is installed that is held to its own node",
    });
    if facts.mode().is_none() && facts.agent.is_ok() {
        match facts.best() {
            Some(Mode::Impersonation) => sheet.line("This cluster can have the chart's agent.rights=impersonation"),
            Some(Mode::Admission) => sheet.line("This cluster can have the chart's agent.rights=admission"),
            Some(Mode::Brokered) => sheet.line("This cluster can have the chart's agent.rights=brokered"),
            None => {}
        }
    }
    let findings = facts.findings();
    let row = |finding: &findings::Finding| {
        vec![finding.subject.to_owned(), finding.state.name().to_owned(), finding.what.clone()]
    };
    sheet.table(&[("CHECK", Left), ("IS", Left), ("", Left)], &findings.iter().map(row).collect::<Vec<_>>());
    let advised: Vec<_> = findings.iter().filter(|finding| finding.advice.is_some()).collect();
    if !advised.is_empty() {
        sheet.title("What to do");
        let widest = advised.iter().map(|finding| width(finding.subject)).max().unwrap_or(0);
        for finding in advised {
            sheet.labelled(&format!("{:<widest$}", finding.subject), finding.advice.as_deref().unwrap_or_default());
        }
    }
    (sheet.take(), findings.iter().all(|finding| matches!(finding.state, State::Ok | State::NotKnown)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::findings::{Guards, Trial, Version};
    use super::rights::{ADMISSION, BROKER, BROKERED, COORDINATOR, IMPERSONATION, PATCH_NODES, WEBHOOK};
    use super::*;
    use crate::golden::is_golden;

    /// The chart as it stands, on the newest Kubernetes, asked by an admin.
    fn impersonation() -> Facts {
        Facts {
            version: Ok(Version { minor: 36, text: "v1.36.3".into() }),
            feature: Ok(true),
            policies_served: Ok(true),
            node_restriction: Ok(true),
            agent: Ok(BTreeSet::from(IMPERSONATION)),
            coordinator: Ok(BTreeSet::from(COORDINATOR)),
            guards: Guards { agent: Ok(false), agent_pods: Ok(false), coordinator: Ok(true), evictions: Ok(false) },
            trial: Ok(Trial { own: true, other_node: Some(false), other_pod: Some(false) }),
        }
    }

    fn admission() -> Facts {
        Facts {
            version: Ok(Version { minor: 33, text: "v1.33.1".into() }),
            feature: Ok(false),
            agent: Ok(BTreeSet::from(ADMISSION)),
            coordinator: Ok(COORDINATOR.into_iter().chain([WEBHOOK]).collect()),
            guards: Guards { agent: Ok(true), agent_pods: Ok(false), coordinator: Ok(true), evictions: Ok(true) },
            ..impersonation()
        }
    }

    fn brokered() -> Facts {
        Facts {
            agent: Ok(BTreeSet::from(BROKERED)),
            coordinator: Ok(COORDINATOR.into_iter().chain(BROKER).collect()),
            guards: Guards { agent: Ok(false), agent_pods: Ok(false), coordinator: Ok(true), evictions: Ok(false) },
            trial: Ok(Trial { own: false, other_node: Some(false), other_pod: Some(false) }),
            ..admission()
        }
    }

    #[test]
    fn what_is_not_ok_is_said_with_what_to_do() {
        let check = |name: &str, facts: Facts, expected: bool| {
            let (printed, well) = text(&facts, &mut Sheet::new(100, false));
            is_golden(&printed, &format!("tests/golden/rbac-{name}.txt"));
            assert_eq!(well, expected, "{printed}");
            assert!(printed.lines().all(|line| line.chars().count() <= 100), "{printed}");
        };
        fn denied<T>() -> findings::Known<T> {
            Err("you may not".to_owned())
        }
        let none = || Ok(BTreeSet::new());
        let no_trial = || Err("no agent runs".to_owned());
        let no_guards =
            || Guards { agent: Ok(false), agent_pods: Ok(false), coordinator: Ok(false), evictions: Ok(false) };
        check("impersonation", impersonation(), true);
        check("admission", admission(), true);
        check("brokered", brokered(), true);
        // The coordinator's role is of another value.
        let plain = Ok(BTreeSet::from(COORDINATOR));
        check("no-broker", Facts { coordinator: plain, ..brokered() }, false);
        // Before Kubernetes 1.30.
        let version = Ok(Version { minor: 29, text: "v1.29.9".into() });
        let guards = Guards { coordinator: Ok(false), ..brokered().guards };
        check("brokered-old", Facts { version, policies_served: Ok(false), guards, ..brokered() }, false);
        let reaches = Ok(Trial { own: true, ..brokered().trial.unwrap() });
        assert!(!text(&Facts { trial: reaches, ..brokered() }, &mut Sheet::new(100, false)).1);
        // The chart's default on a cluster that has not got the feature.
        let failed = Ok(Trial { own: false, other_node: Some(false), other_pod: Some(false) });
        let version = Ok(Version { minor: 35, text: "v1.35.2".into() });
        check("feature-off", Facts { version, feature: Ok(false), trial: failed, ..impersonation() }, false);
        // A role made by hand.
        let reaches = Ok(Trial { own: true, other_node: Some(true), other_pod: Some(true) });
        let plain =
            Facts { agent: Ok(BTreeSet::from(ADMISSION)), guards: no_guards(), trial: reaches, ..impersonation() };
        check("plain-role", plain, false);
        // The webhook has no CA yet.
        let guards = Guards { evictions: Ok(false), ..admission().guards };
        check("no-webhook", Facts { guards, ..admission() }, false);
        check("no-node-restriction", Facts { node_restriction: Ok(false), ..impersonation() }, false);
        let empty =
            Facts { agent: none(), coordinator: none(), guards: no_guards(), trial: no_trial(), ..impersonation() };
        check("not-installed", empty, false);
        let blind = Facts {
            feature: denied(),
            policies_served: denied(),
            node_restriction: denied(),
            agent: denied(),
            coordinator: denied(),
            guards: Guards { agent: denied(), agent_pods: denied(), coordinator: denied(), evictions: denied() },
            trial: denied(),
            ..impersonation()
        };
        check("not-known", blind, true);
        let old =
            Facts { version: Ok(Version { minor: 29, text: "v1.29.9".into() }), feature: Ok(false), ..impersonation() };
        assert!(!text(&old, &mut Sheet::new(100, false)).1);
        assert_eq!((old.best(), admission().best()), (Some(Mode::Brokered), Some(Mode::Admission)));
        // A right of the agent's beyond, whatever holds the others.
        let mut more = admission();
        more.agent = Ok(ADMISSION.into_iter().chain([rights::DELETE_PODS]).collect());
        assert!(text(&more, &mut Sheet::new(100, false)).0.contains("on all: delete pods"));
        more.guards.agent_pods = Ok(true);
        assert!(text(&more, &mut Sheet::new(100, false)).1);
        let more = BTreeSet::from_iter(IMPERSONATION.into_iter().chain([PATCH_NODES]));
        assert!(!text(&Facts { agent: Ok(more), ..impersonation() }, &mut Sheet::new(100, false)).1);
    }
}
