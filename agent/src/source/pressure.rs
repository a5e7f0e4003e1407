//! Pressure stall information: for how long tasks could not go on for want of something
//! (`Documentation/accounting/psi.rst`). Totals only: averages are made over our own window.

use std::path::Path;
use std::time::Duration;

use super::polled::Polled;
use super::{Error, Malformed};

/// Time stalled since boot. `None`: the kernel does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Some task was stalled.
    pub some: Option<Duration>,
    /// All tasks were, so that no work was done.
    pub full: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressures {
    pub cpu: Pressure,
    pub io: Pressure,
    /// Time lost to interrupts: since Linux 6.1, and only where the kernel counts interrupt time.
    pub irq: Option<Pressure>,
    pub memory: Pressure,
}

impl Pressures {
    /// By resource, in alphabetical order.
    pub fn iter(self) -> impl Iterator<Item = (&'static str, Pressure)> {
        let all = [("cpu", Some(self.cpu)), ("io", Some(self.io)), ("irq", self.irq), ("memory", Some(self.memory))];
        all.into_iter().filter_map(|(resource, pressure)| Some((resource, pressure?)))
    }
}

#[derive(Debug)]
pub struct PressureFiles {
    cpu: Polled,
    io: Polled,
    irq: Polled,
    memory: Polled,
}

impl PressureFiles {
    pub fn new(proc_root: &Path) -> Self {
        let file = |name| Polled::new(proc_root.join("pressure").join(name));
        Self { cpu: file("cpu"), io: file("io"), irq: file("irq"), memory: file("memory") }
    }

    pub fn read(&mut self, buffer: &mut Vec<u8>) -> Result<Pressures, Error> {
        Ok(Pressures {
            cpu: self.cpu.read(buffer, parse)?,
            io: self.io.read(buffer, parse)?,
            // Missing, or refused with EOPNOTSUPP: nothing is wrong with the source.
            irq: self.irq.read(buffer, parse).ok(),
            memory: self.memory.read(buffer, parse)?,
        })
    }
}

pub(crate) fn parse(text: &str) -> Result<Pressure, Malformed> {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let (kind, rest) = line.split_once(' ').ok_or(Malformed("kind of pressure"))?;
        let total = rest.split(' ').find_map(|word| word.strip_prefix("total="));
        let micros = total.and_then(|total| total.parse().ok()).ok_or(Malformed("total of a pressure"))?;
        match kind {
            "some" => pressure.some = Some(Duration::from_micros(micros)),
            "full" => pressure.full = Some(Duration::from_micros(micros)),
            _ => return Err(Malformed("kind of pressure that is known")),
        }
    }
    if pressure == Pressure::default() {
        return Err(Malformed("pressure"));
    }
    Ok(pressure)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn totals_are_microseconds() {
        let check = |text: &str, some: Option<u64>, full: Option<u64>| {
            let pressure = Pressure { some: some.map(Duration::from_micros), full: full.map(Duration::from_micros) };
            assert_eq!(parse(text), Ok(pressure), "{text}");
        };
        let some = "some avg10=94.33 avg60=62.19 avg300=24.33 total=339845821\n";
        let full = "full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        check(some, Some(339_845_821), None);
        check(full, None, Some(7));
        check(&format!("{some}{full}"), Some(339_845_821), Some(7));
    }

    #[test]
    fn a_broken_file_is_refused() {
        for text in ["", "some", "some avg10=1", "some total=x", "some total=-1", "most total=1", "\n"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_parsed_is_what_was_written(some in any::<u64>(), full in any::<u64>()) {
            let text = format!("some avg10=0.00 total={some}\nfull avg10=0.00 total={full}\n");
            let (some, full) = (Duration::from_micros(some), Duration::from_micros(full));
            prop_assert_eq!(parse(&text), Ok(Pressure { some: Some(some), full: Some(full) }));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(some|full|total=|[0-9]{0,25}|[ \n]|\\PC){0,40}") {
            let _any_answer = parse(&text);
        }
    }
}
