//! The cost of events that other systems append, and of the consumers that get them.

use anyhow::Result;

use crate::{
    data::{Amounts, EventAssumptions, Item, Limit, Mapping},
    inputs::Inputs,
    lambda::{Work, batch, invocations, month},
    onboarding::PUBLISHER,
    quotas::Uses,
    readings::Capacity,
    units::{DAYS, GIGABYTE, HOURS, SECONDS},
};

const MONTH: f64 = DAYS * SECONDS;
/// The bytes per second that all consumers with shared throughput together may read from a shard.
const SHARED_BYTES: f64 = 2.0 * 1_048_576.0;

/// How an event gets to a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// From the stream, with the throughput that all consumers share.
    Shared(Capacity),
    /// From the stream, with enhanced fan-out.
    FanOut(Capacity),
    /// From the bus, by a rule that invokes the function for each event.
    Function,
    /// From the bus, by a rule and a queue.
    Queue,
}

/// Events at a mean rate.
#[derive(Clone, Copy, Debug)]
pub struct Events<'a> {
    inputs: &'a Inputs,
    /// The mean number of events per second.
    rate: f64,
}

impl<'a> Events<'a> {
    /// Creates the model for this number of events per day.
    #[must_use]
    pub fn a_day(inputs: &'a Inputs, events: f64) -> Self {
        Self { inputs, rate: events / SECONDS }
    }

    fn assumed(&self) -> &'a EventAssumptions {
        &self.inputs.assumed.events
    }

    /// Returns the rate at the peak.
    #[must_use]
    pub fn peak(&self) -> f64 {
        self.rate * self.assumed().peak
    }

    /// Returns the gigabytes per month that a stream on demand charges for one write or read of all events.
    fn gigabytes(&self) -> f64 {
        (self.assumed().record_bytes / 1024.0).ceil() * 1024.0 * self.rate * MONTH / GIGABYTE
    }

    /// Returns the number of shards that the peak needs, if this number of consumers shares their throughput.
    #[must_use]
    pub fn shards(&self, shared: f64) -> f64 {
        let assumed = &self.inputs.assumed;
        let bytes = self.peak() * self.assumed().record_bytes;
        let written = (bytes / assumed.shard_bytes).max(self.peak() / assumed.shard_records);
        written.max(shared * bytes / SHARED_BYTES).ceil().max(1.0)
    }

    /// Returns the work of a function that handles an event like this measured function.
    fn work(&self, name: &str, like: &str, side_by_side: f64) -> Result<Work> {
        let ours = self.inputs.figures.function(like)?;
        let (calls, _) = ours.calls();
        Ok(Work {
            memory: self.inputs.memory(name),
            invocation: 0.0,
            record: ours.millis(),
            wait: calls * self.inputs.assumed.aws_millis,
            side_by_side,
            log_bytes: ours.log_bytes(),
        })
    }

    /// Returns the work of an append, and its duration in milliseconds. An append waits for two calls: the query of the
    /// entity's last event, and the transaction.
    fn append(&self) -> Result<(Work, f64)> {
        let mut work = self.work("append-event", &self.assumed().appended_like, 1.0)?;
        work.wait = 2.0 * self.inputs.assumed.aws_millis;
        Ok((work, work.millis(1.0)))
    }

    /// Returns the publisher's invocations per second at this rate, their duration and their work.
    fn publisher(&self, rate: f64) -> Result<(f64, f64, Work)> {
        let per_call = self.assumed().events_per_call;
        let mut work = self.work(PUBLISHER, PUBLISHER, per_call)?;
        // The stream, the bus and the marks.
        work.wait = 3.0 * self.inputs.assumed.aws_millis;
        Ok((rate / per_call, work.millis(per_call), work))
    }

    /// Returns the monthly amounts, by what causes them.
    pub fn amounts(&self, capacity: Capacity) -> Result<Vec<(&'static str, Amounts)>> {
        let Inputs { assumed, .. } = self.inputs;
        let events = self.rate * MONTH;
        let (append, millis) = self.append()?;
        let (invoked, publish_millis, publisher) = self.publisher(self.rate)?;
        let units = |item, units| Amounts::from([(item, events * units)]);
        let access_log = events * assumed.access_log_bytes / GIGABYTE;
        let api = Amounts::from([(Item::ApiRequest, events), (Item::LogGigabyte, access_log)]);
        Ok(vec![
            ("DynamoDB: writes", units(Item::WriteUnit, self.assumed().write_units)),
            ("DynamoDB: reads", units(Item::ReadUnit, self.assumed().read_units)),
            ("API", api),
            ("append-event", month(self.rate, millis, &append, assumed)),
            ("publish-events", month(invoked, publish_millis, &publisher, assumed)),
            ("bus", units(Item::Event, 1.0)),
            ("stream", self.stream(capacity)),
        ])
    }

    /// Returns the monthly amounts of the stream without its consumers.
    #[must_use]
    pub fn stream(&self, capacity: Capacity) -> Amounts {
        match capacity {
            Capacity::OnDemand => Amounts::from([
                (Item::StreamHour, HOURS),
                (Item::StreamInGigabyte, self.gigabytes()),
            ]),
            Capacity::Provisioned => Amounts::from([
                (Item::ShardHour, self.shards(0.0) * HOURS),
                (Item::PutPayloadUnit, self.rate * MONTH),
            ]),
        }
    }

    /// Returns the monthly amounts of storing a month's events afterwards.
    #[must_use]
    pub fn retention(&self) -> Amounts {
        let gigabytes = self.rate * MONTH * self.assumed().stored_bytes / GIGABYTE;
        Amounts::from([(Item::StoredGigabyte, gigabytes), (Item::RecoverableGigabyte, gigabytes)])
    }

    /// Returns the monthly amounts of the effects of watch-network, which gets all events.
    #[must_use]
    pub fn effects(&self) -> Amounts {
        let batch = self.rate / self.batches();
        let units = self.rate * MONTH * self.inputs.consumers.write_units(batch);
        Amounts::from([(Item::WriteUnit, units)])
    }

    /// Returns the number of batches per second that a consumer of the stream gets.
    fn batches(&self) -> f64 {
        let Inputs { assumed, .. } = self.inputs;
        let mapping =
            Mapping { batch_size: self.assumed().consumer_batch, parallelization_factor: 1.0 };
        let largest = batch(mapping, self.assumed().record_bytes, assumed);
        let lanes = self.shards(0.0).max(assumed.least_shards);
        invocations(self.rate, lanes, largest, assumed.polls)
    }

    /// Returns the monthly cost in USD of this number of consumers that each get a part of the events, without their
    /// effects. Returns `None` if a limit does not allow so many consumers.
    ///
    /// The stream and the bus without consumers are not included. A consumer of the stream gets all events.
    pub fn delivery(&self, delivery: Delivery, consumers: f64, part: f64) -> Result<Option<f64>> {
        let cost = |amounts: &Amounts| self.inputs.prices.cost_of(amounts);
        let out = self.gigabytes() * consumers;
        let reading = match delivery {
            Delivery::Shared(_) if consumers > self.assumed().shared_reads => return Ok(None),
            Delivery::Shared(Capacity::OnDemand) => {
                cost(&Amounts::from([(Item::StreamOutGigabyte, out)]))
            }
            Delivery::Shared(Capacity::Provisioned) => {
                let more = self.shards(consumers) - self.shards(0.0);
                cost(&Amounts::from([(Item::ShardHour, more * HOURS)]))
            }
            Delivery::FanOut(Capacity::OnDemand) => {
                if consumers > self.assumed().advantage_consumers {
                    return Ok(None);
                }
                if consumers > self.assumed().fan_out_consumers {
                    let standard = cost(&self.stream(Capacity::OnDemand));
                    cost(&self.advantage(out)) - standard
                } else {
                    cost(&Amounts::from([(Item::FanOutGigabyte, out)]))
                }
            }
            Delivery::FanOut(Capacity::Provisioned) => {
                if consumers > self.assumed().fan_out_consumers {
                    return Ok(None);
                }
                let bytes = self.assumed().record_bytes * self.rate * MONTH * consumers;
                cost(&Amounts::from([
                    (Item::ConsumerShardHour, self.shards(0.0) * HOURS * consumers),
                    (Item::ConsumerShardGigabyte, bytes / GIGABYTE),
                ]))
            }
            Delivery::Function => 0.0,
            Delivery::Queue => {
                let requests = 1.0 + 2.0 / self.assumed().queue_batch;
                let events = self.rate * MONTH * part * consumers;
                cost(&Amounts::from([(Item::QueueRequest, events * requests)]))
            }
        };
        Ok(Some(reading + consumers * cost(&self.consumer(delivery, part)?)))
    }

    /// Returns the monthly amounts of the mode On-demand Advantage, with its least charge.
    fn advantage(&self, out: f64) -> Amounts {
        let least = self.assumed().advantage_bytes * MONTH / GIGABYTE;
        Amounts::from([
            (Item::AdvantageInGigabyte, self.gigabytes().max(least)),
            (Item::AdvantageOutGigabyte, out.max(least)),
        ])
    }

    /// Returns the monthly amounts of a consumer's function.
    fn consumer(&self, delivery: Delivery, part: f64) -> Result<Amounts> {
        let Inputs { assumed, .. } = self.inputs;
        let work = self.work("", &self.assumed().consumed_like, assumed.side_by_side)?;
        let rate = self.rate * part;
        let invoked = match delivery {
            Delivery::Function => rate,
            Delivery::Queue => rate / self.assumed().queue_batch,
            Delivery::Shared(_) | Delivery::FanOut(_) => self.batches(),
        };
        let records = match delivery {
            Delivery::Function => 1.0,
            Delivery::Queue => self.assumed().queue_batch,
            Delivery::Shared(_) | Delivery::FanOut(_) => self.rate / invoked,
        };
        Ok(month(invoked, work.millis(records), &work, assumed))
    }

    /// Returns the break-even part of the events. A consumer with a queue on the bus that gets a smaller part costs
    /// less than this delivery.
    pub fn break_even(&self, delivery: Delivery) -> Result<f64> {
        let stream = self.delivery(delivery, 1.0, 1.0)?.unwrap_or(f64::INFINITY);
        let (mut low, mut high) = (0.0, 1.0);
        for _ in 0..40 {
            let middle = f64::midpoint(low, high);
            let bus = self.delivery(Delivery::Queue, 1.0, middle)?.unwrap_or(f64::INFINITY);
            if bus < stream { low = middle } else { high = middle }
        }
        Ok(low)
    }

    /// Returns the use of the quotas at this rate. The model assumes that one rule, of an external consumer, selects
    /// all events.
    pub fn uses(&self, rate: f64) -> Result<Uses> {
        let (_, append) = self.append()?;
        let (invoked, publish_millis, _) = self.publisher(rate)?;
        let table = rate * self.assumed().table_write_units;
        Ok(Uses::from([
            (Limit::PostEvents, rate),
            (Limit::ApiRequests, rate),
            (Limit::Concurrency, (rate * append + invoked * publish_millis) / 1000.0),
            (Limit::NewEventsTableWrites, table),
            (Limit::EventsTableWrites, table),
            (Limit::TypeWrites, rate),
            (Limit::NewEventStreamBytes, rate * self.assumed().record_bytes),
            (Limit::PutEvents, rate / self.assumed().events_per_call),
            (Limit::TargetInvocations, rate),
        ]))
    }

    /// Returns the mean rate.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.rate
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{counted::ConsumedBatch, readings::add};

    fn inputs() -> Inputs {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut inputs = Inputs::read(&root).expect("the repository has all inputs");
        let assumed = &mut inputs.assumed.events;
        (assumed.record_bytes, assumed.stored_bytes, assumed.peak) = (1500.0, 2048.0, 4.0);
        (assumed.write_units, assumed.table_write_units) = (12.0, 10.0);
        (assumed.events_per_call, assumed.queue_batch) = (10.0, 10.0);
        inputs
    }

    fn assert_near(one: f64, other: f64) {
        assert!((one - other).abs() < 1e-9 * other.abs().max(1.0), "{one}, not {other}");
    }

    /// A thousand events per second.
    fn events(inputs: &Inputs) -> Events<'_> {
        Events::a_day(inputs, 1000.0 * SECONDS)
    }

    #[test]
    fn an_event_is_charged_once_by_the_api_the_bus_and_in_started_kilobytes_by_the_stream()
    -> Result<()> {
        let inputs = inputs();
        let month = events(&inputs).amounts(Capacity::OnDemand)?;
        let all = month.iter().fold(Amounts::new(), |all, (_, amounts)| add(all, amounts));
        assert_near(all[&Item::ApiRequest], 2.592e9);
        assert_near(all[&Item::Event], 2.592e9);
        assert_near(all[&Item::WriteUnit], 12.0 * 2.592e9);
        assert_near(all[&Item::StreamInGigabyte], 2.592e9 * 2048.0 / 1_073_741_824.0);
        // One invocation for each append, and one for ten events of the publisher.
        assert_near(all[&Item::Request], 1.1 * 2.592e9);
        Ok(())
    }

    #[test]
    fn shards_are_enough_for_the_peak_and_for_what_consumers_share() {
        let inputs = inputs();
        // 4,000 records and 6 MB per second: six shards for the bytes in. Five consumers read 30 MB.
        assert_near(events(&inputs).shards(0.0), 6.0);
        assert_near(events(&inputs).shards(5.0), 15.0);
    }

    #[test]
    fn limits_end_the_deliveries_from_the_stream() -> Result<()> {
        let inputs = inputs();
        let delivery = |delivery, consumers| events(&inputs).delivery(delivery, consumers, 1.0);
        for capacity in [Capacity::OnDemand, Capacity::Provisioned] {
            assert!(delivery(Delivery::Shared(capacity), 5.0)?.is_some());
            assert!(delivery(Delivery::Shared(capacity), 6.0)?.is_none());
        }
        assert!(delivery(Delivery::FanOut(Capacity::OnDemand), 50.0)?.is_some());
        assert!(delivery(Delivery::FanOut(Capacity::OnDemand), 51.0)?.is_none());
        assert!(delivery(Delivery::FanOut(Capacity::Provisioned), 20.0)?.is_some());
        assert!(delivery(Delivery::FanOut(Capacity::Provisioned), 21.0)?.is_none());
        Ok(())
    }

    #[test]
    fn a_consumer_of_the_bus_costs_less_only_below_the_break_even() -> Result<()> {
        let inputs = inputs();
        let events = events(&inputs);
        let shared = Delivery::Shared(Capacity::OnDemand);
        let part = events.break_even(shared)?;
        let stream = events.delivery(shared, 1.0, 1.0)?;
        assert!(part > 0.0 && part < 1.0, "{part}");
        assert!(events.delivery(Delivery::Queue, 1.0, part * 0.9)? < stream);
        assert!(events.delivery(Delivery::Queue, 1.0, part * 1.1)? > stream);
        Ok(())
    }

    #[test]
    fn the_effects_of_watch_network_cost_less_in_larger_batches() {
        let mut inputs = inputs();
        let batch = |events, write_units| ConsumedBatch { events, write_units };
        inputs.consumers.watch_network = vec![batch(1, 4.0), batch(100, 220.0)];
        // Four shards, each polled once a second: batches of one event, and full ones.
        for (rate, units) in [(2.0, 4.0), (1000.0, 2.2)] {
            let effects = Events::a_day(&inputs, rate * SECONDS).effects();
            assert_near(effects[&Item::WriteUnit], rate * MONTH * units);
        }
    }

    #[test]
    fn the_quotas_are_used_at_the_rate() -> Result<()> {
        let inputs = inputs();
        let uses = events(&inputs).uses(4000.0)?;
        assert_near(uses[&Limit::PostEvents], 4000.0);
        assert_near(uses[&Limit::EventsTableWrites], 40_000.0);
        assert_near(uses[&Limit::PutEvents], 400.0);
        assert_near(uses[&Limit::NewEventStreamBytes], 6e6);
        Ok(())
    }
}
