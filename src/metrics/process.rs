//! The process's own metrics, by the names that every exporter gives them: memory, processor time, open files, and start.

use jiff::Timestamp;
use prometheus::{
    core::{Collector, Desc},
    process_collector::ProcessCollector,
    proto::{Gauge, MetricFamily},
};

/// The process's collector, with a start time of our own. The library reads it from a file that a service sees only with more of
/// `/proc` than it needs. A process that executes itself anew counts from zero again, too.
pub(super) struct Process {
    collector: ProcessCollector,
    started: Timestamp,
}

impl Process {
    pub(super) fn new() -> Self {
        Self {
            collector: ProcessCollector::for_self(),
            started: Timestamp::now(),
        }
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.collector.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = self.collector.collect();
        for family in families
            .iter_mut()
            .filter(|family| family.name() == "process_start_time_seconds")
        {
            let mut gauge = Gauge::default();
            gauge.set_value(self.started.as_second() as f64);
            family
                .mut_metric()
                .iter_mut()
                .for_each(|metric| metric.set_gauge(gauge.clone()));
        }
        families
    }
}
