//! Logs on standard error, as text or JSON lines, with a filter that can be changed while the agent runs.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// Changes the filter.
#[derive(Clone)]
pub struct Handle(reload::Handle<Targets, Registry>);

impl Handle {
    pub fn set(&self, filter: Targets) {
        // An error means that the subscriber is gone, and with it whoever could read more or less.
        let _subscriber_gone = self.0.reload(filter);
    }
}

pub fn init(format: Format, filter: Targets) -> Handle {
    let (filter, handle) = reload::Layer::new(filter);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        Format::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
    Handle(handle)
}

/// A level, or `target=level` pairs and a level for the rest, separated by commas.
pub fn parse_filter(text: &str) -> Result<Targets, String> {
    // `Targets` takes a word it does not know for a target, and shows all that it says.
    let known = |part: &str| {
        let level = part.rsplit('=').next().unwrap_or_default().trim();
        !level.is_empty() && level.parse::<LevelFilter>().is_ok()
    };
    if !text.split(',').all(known) {
        return Err("expected off, error, warn, info, debug or trace, as in `info` or `info,kube=debug`".into());
    }
    text.parse().map_err(|error| format!("{error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_levels_and_targets() {
        for text in ["info", "off", "DEBUG", "info,kube=debug", "ebb_agent::drain=trace, warn"] {
            assert!(parse_filter(text).is_ok(), "{text}");
        }
        for text in ["", "inof", "kube", "info,kube", "kube=loud", "info,"] {
            assert!(parse_filter(text).is_err(), "{text}");
        }
    }
}
