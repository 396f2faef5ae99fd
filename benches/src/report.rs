//! What was measured, as a table for people and as JSON for programs. Owns how figures are compared; measures nothing.

use std::fmt::Write as _;

use serde::{Serialize, Serializer, ser::SerializeStruct};

use crate::{harness::Cost, statistics::Spread};

/// One figure of one side in one round.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    /// In the table's unit.
    pub value: f64,
    /// What it took of the machine.
    #[serde(flatten)]
    pub cost: Cost,
}

/// Someone who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Who {
    /// Short, for the table.
    pub name: &'static str,
    /// What it is, and how it is set.
    pub settings: &'static str,
}

/// Which figures are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// Rates.
    More,
    /// Times and sizes.
    Less,
}

/// What a bench has to show: something of the first side, or of its ratio to another.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    /// Whom the first side is compared with; `None`: with nobody.
    pub against: Option<Who>,
    /// The worst that is good enough.
    pub bound: f64,
}

/// Sides that were measured in turn.
#[derive(Clone, Debug)]
pub struct Table {
    /// What was measured.
    pub title: String,
    /// Of the values.
    pub unit: &'static str,
    /// Which values are good.
    pub better: Better,
    /// In the order in which they were first measured; the first is blobcast.
    pub sides: Vec<Side>,
    /// The goals that the figures are held to.
    pub goals: Vec<Goal>,
}

/// The samples of one side, one for each round.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// Whose.
    #[serde(flatten)]
    pub who: Who,
    /// In the order of the rounds.
    pub samples: Vec<Sample>,
}

impl Side {
    /// The values.
    pub fn spread(&self) -> Option<Spread> {
        Spread::of(self.samples.iter().map(|sample| sample.value))
    }

    /// The first side's values by those of this one, each by that of the same round.
    fn ratio_of(&self, first: &Self) -> Option<Spread> {
        Spread::of(
            first
                .samples
                .iter()
                .zip(&self.samples)
                .map(|(first, this)| first.value / this.value),
        )
    }

    /// Processor time of the servers for each of what was counted, in microseconds; `None` where nothing was counted a second,
    /// or no time was taken.
    fn server_micros_each(&self, unit: &str) -> Option<f64> {
        let counted = |sample: &Sample| sample.value * sample.cost.seconds;
        let count: f64 = self.samples.iter().map(counted).sum();
        let cpu = self
            .samples
            .iter()
            .map(|sample| sample.cost.server_cpu_seconds);
        let micros = cpu.sum::<f64>() * 1e6;
        (unit.ends_with("/s") && count > 0.0 && micros > 0.0).then(|| micros / count)
    }

    /// Cores that the servers and the generator kept busy; `None` where no time was taken.
    fn cores(&self) -> Option<[f64; 2]> {
        let sum = |of: fn(&Cost) -> f64| {
            self.samples
                .iter()
                .map(|sample| of(&sample.cost))
                .sum::<f64>()
        };
        let (server, generator) = (
            sum(|cost| cost.server_cpu_seconds),
            sum(|cost| cost.generator_cpu_seconds),
        );
        let seconds = sum(|cost| cost.seconds);
        (server + generator > 0.0).then(|| [server / seconds, generator / seconds])
    }
}

impl Table {
    /// Nothing measured yet.
    pub fn new(title: impl Into<String>, unit: &'static str, better: Better) -> Self {
        Self {
            title: title.into(),
            unit,
            better,
            sides: Vec::new(),
            goals: Vec::new(),
        }
    }

    /// Wants the first side's ratio to `against` to be no worse than `bound`.
    pub fn goal_against(mut self, against: Who, bound: f64) -> Self {
        self.goals.push(Goal {
            against: Some(against),
            bound,
        });
        self
    }

    /// Wants the first side's value to be no worse than `bound`.
    pub fn goal(mut self, bound: f64) -> Self {
        self.goals.push(Goal {
            against: None,
            bound,
        });
        self
    }

    /// Notes a sample.
    pub fn add(&mut self, who: Who, sample: Sample) {
        match self.sides.iter_mut().find(|side| side.who == who) {
            Some(side) => side.samples.push(sample),
            None => self.sides.push(Side {
                who,
                samples: vec![sample],
            }),
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let better = match self.better {
            Better::More => "more",
            Better::Less => "less",
        };
        let width = self
            .sides
            .iter()
            .map(|side| side.who.name.chars().count())
            .max()
            .unwrap_or_default();
        let (title, unit) = (&self.title, self.unit);
        let _ = writeln!(text, "\n{title}: {unit}, {better} is better");
        let _ = writeln!(
            text,
            "  {:width$}  {:>12}  {:>12}  {:>12}  {:>22}  {:>12}  {:>12}  {:>12}",
            "", "median", "min", "max", "blobcast by it", "server cores", "load cores", "server µs"
        );
        for side in &self.sides {
            let Some(Spread { median, min, max }) = side.spread() else {
                continue;
            };
            let ratio = self.sides[..1]
                .iter()
                .find_map(|first| side.ratio_of(first))
                .filter(|_| side.who != self.sides[0].who);
            let ratio = ratio.map(spread_text).unwrap_or_default();
            let [server, load] = side
                .cores()
                .map(|cores| cores.map(|cores| format!("{cores:.2}")))
                .unwrap_or_default();
            let micros = side.server_micros_each(unit);
            let micros = micros.map(number).unwrap_or_default();
            let [median, min, max] = [median, min, max].map(number);
            let name = side.who.name;
            let _ = writeln!(
                text,
                "  {name:width$}  {median:>12}  {min:>12}  {max:>12}  {ratio:>22}  {server:>12}  {load:>12}  {micros:>12}"
            );
        }
        for goal in &self.goals {
            let _ = writeln!(text, "  {}", self.judged(goal));
        }
        for Side {
            who: Who { name, settings },
            ..
        } in &self.sides
        {
            let _ = writeln!(text, "  {name}: {settings}");
        }
        text
    }

    /// Whether everything is as good as it was to be.
    pub fn is_met(&self) -> bool {
        self.goals.iter().all(|goal| {
            self.found(goal)
                .is_some_and(|found| self.is_good_enough(found, goal))
        })
    }

    fn is_good_enough(&self, found: Spread, goal: &Goal) -> bool {
        match self.better {
            Better::More => found.median >= goal.bound,
            Better::Less => found.median <= goal.bound,
        }
    }

    fn found(&self, goal: &Goal) -> Option<Spread> {
        match goal.against {
            Some(against) => self.ratio_to(against),
            None => self.sides.first()?.spread(),
        }
    }

    fn judged(&self, goal: &Goal) -> String {
        let sign = match self.better {
            Better::More => '≥',
            Better::Less => '≤',
        };
        let bound = number(goal.bound);
        let what = match goal.against {
            Some(against) => format!("goal {sign} {bound} × {}", against.name),
            None => format!("goal {sign} {bound} {}", self.unit),
        };
        let Some(found) = self.found(goal) else {
            return format!("{what}: not measured");
        };
        let verdict = if self.is_good_enough(found, goal) {
            "met"
        } else {
            "MISSED"
        };
        format!("{what}: {}: {verdict}", spread_text(found))
    }

    fn ratio_to(&self, against: Who) -> Option<Spread> {
        self.sides
            .iter()
            .find(|side| side.who == against)?
            .ratio_of(self.sides.first()?)
    }
}

impl Serialize for Table {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ratios: Vec<_> = self
            .sides
            .iter()
            .skip(1)
            .map(|side| (side.who.name, self.ratio_to(side.who)))
            .collect();
        let goals: Vec<_> = self.goals.iter().map(|goal| self.judged(goal)).collect();
        let mut table = serializer.serialize_struct("Table", 7)?;
        table.serialize_field("title", &self.title)?;
        table.serialize_field("unit", self.unit)?;
        table.serialize_field("better", &self.better)?;
        table.serialize_field("sides", &self.sides)?;
        table.serialize_field("ratios", &ratios)?;
        let micros: Vec<_> = self
            .sides
            .iter()
            .map(|side| (side.who.name, side.server_micros_each(self.unit)))
            .collect();
        table.serialize_field("goals", &goals)?;
        table.serialize_field("server_micros_each", &micros)?;
        table.end()
    }
}

fn spread_text(spread: Spread) -> String {
    let [median, min, max] = [spread.median, spread.min, spread.max].map(number);
    if min == max {
        median
    } else {
        format!("{median} ({min} to {max})")
    }
}

/// Three digits that count, and thousands apart.
pub fn number(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 | 100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let (whole, rest) = text
        .split_once('.')
        .map_or((text.as_str(), None), |(whole, rest)| (whole, Some(rest)));
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place) % 3 == 0 && digit.is_ascii_digit() {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    match rest {
        Some(rest) => format!("{grouped}.{rest}"),
        None => grouped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Who = Who {
        name: "a",
        settings: "",
    };
    const B: Who = Who {
        name: "b",
        settings: "",
    };

    fn sample(value: f64) -> Sample {
        Sample {
            value,
            cost: Cost::default(),
        }
    }

    #[test]
    fn a_ratio_is_taken_within_each_round() {
        let mut table = Table::new("t", "x", Better::More).goal_against(B, 1.5);
        for (a, b) in [(20.0, 10.0), (30.0, 10.0), (10.0, 10.0)] {
            table.add(A, sample(a));
            table.add(B, sample(b));
        }
        assert_eq!(
            table.ratio_to(B),
            Some(Spread {
                median: 2.0,
                min: 1.0,
                max: 3.0
            })
        );
        assert!(
            table
                .text()
                .contains("goal ≥ 1.50 × b: 2.00 (1.00 to 3.00): met"),
            "{}",
            table.text()
        );
    }

    #[test]
    fn the_servers_time_is_shared_by_what_was_counted() {
        let cost = Cost {
            seconds: 2.0,
            server_cpu_seconds: 0.5,
            ..Cost::default()
        };
        let side = Side {
            who: A,
            samples: vec![Sample {
                value: 1_000.0,
                cost,
            }],
        };
        assert_eq!(side.server_micros_each("callbacks/s"), Some(250.0));
        assert_eq!(side.server_micros_each("bytes"), None);
    }

    #[test]
    fn less_is_better_where_it_is() {
        let mut table = Table::new("t", "ms", Better::Less).goal(1.0);
        table.add(A, sample(1.5));
        assert!(table.text().contains("MISSED"));
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        let texts = [0.0, 0.1234, 1.234, 12.34, 123.4, 1234.5, 1_234_567.0].map(number);
        assert_eq!(
            texts,
            ["0", "0.123", "1.23", "12.3", "123", "1,234", "1,234,567"]
        );
    }
}
