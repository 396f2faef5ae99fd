//! `ListEvents`: pages of the history. Keeps nothing between two pages.

use std::mem;

use jiff::Timestamp;
use tonic::{Request, Response, Status};

use super::{Context, errors, page};
use crate::{
    budget::Payer,
    event::{Filter, Record, Sequence},
    store::{Chunk, Keep, ReadError, ReadLimits},
    subscription::{Sources, SubscribeError},
    wire::{Delivery, Frame, Malformed, instant_from_wire, v1},
};

/// Most records that one page examines before it ends early, so that a rare filter does not hold a thread.
const PAGE_SCANNED_MAX: usize = 16_384;
/// The same in bytes.
const PAGE_SCANNED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// One page of the events that a filter selects.
pub(super) async fn list(
    context: &Context,
    request: Request<v1::ListEventsRequest>,
) -> Result<Response<Frame>, Status> {
    let caller = context.gate.caller_of(&request)?;
    let payer = Payer::of(&request, &caller);
    let mut request = request.into_inner();
    let page_size = page::size(mem::take(&mut request.page_size))?;
    let token = mem::take(&mut request.page_token);
    let binding = page::binding(&canonical(&request));
    await_place(context, page::place(&token, binding, u64::MAX)?).await?;
    let head = context.sources.store.head();

    let listing = Listing {
        from: page::place(&token, binding, head.0)?.map(Sequence),
        newest_first: newest_first(request.order)?,
        since: instant("since", request.since)?,
        until: instant("until", request.until)?,
        filter: context.filter(request.filter, &caller)?,
        limits: ReadLimits {
            records_max: page_size,
            bytes_max: page::PAGE_BYTES_MAX,
            scanned_max: PAGE_SCANNED_MAX,
            scanned_bytes_max: PAGE_SCANNED_BYTES_MAX,
        },
    };

    let granted = context
        .answers
        .take(&payer, context.page_bytes_max())
        .await?;

    let include_raw = request.include_raw;
    let read = move |sources: &Sources| {
        let (records, next) = listing.page(sources)?;
        let next_page_token = next
            .map(|place| page::token(place.0, binding))
            .unwrap_or_default();
        let delivery = |record| Delivery::new(sources.store.epoch(), record, include_raw);
        let events = records.into_iter().map(delivery).collect();
        Ok((
            Frame::Page {
                events,
                next_page_token,
            }
            .encoded(),
            granted,
        ))
    };

    let (page, granted) = context.read(read).await?;
    Ok(context.answers.respond(page, granted))
}

/// Waits for the place of a page token, which another node may have given out.
async fn await_place(context: &Context, place: Option<u64>) -> Result<(), Status> {
    let Some(place) = place else {
        return Ok(());
    };
    let sources = &context.sources;
    let cursor = sources.store.cursor(Sequence(place));
    match sources.place(cursor).await {
        Err(behind @ SubscribeError::Behind) => Err(errors::open(sources, &behind)),
        _ => Ok(()),
    }
}

/// One page of a listing, as a query to the store.
struct Listing {
    /// The last place of the previous page.
    from: Option<Sequence>,
    newest_first: bool,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    filter: Filter,
    limits: ReadLimits,
}

impl Listing {
    /// The page's records, and the place to continue from if there is more.
    fn page(&self, sources: &Sources) -> Result<(Vec<Record>, Option<Sequence>), ReadError> {
        loop {
            match self.try_page(sources) {
                // Retention took the oldest event between two reads. A listing begins with what is retained now.
                Err(ReadError::Expired) if !self.is_overtaken(sources) => {}
                page => return page,
            }
        }
    }

    /// Whether retention has passed the last place of the previous page, so that events between two pages would be left out without a
    /// word. The end of a listing that goes backwards is what is retained.
    fn is_overtaken(&self, sources: &Sources) -> bool {
        let first_available = sources.store.first_available();
        let next = self.from.map(Sequence::next);
        !self.newest_first && next.is_some_and(|next| next < first_available)
    }

    fn try_page(&self, sources: &Sources) -> Result<(Vec<Record>, Option<Sequence>), ReadError> {
        if self.is_overtaken(sources) {
            return Err(ReadError::Expired);
        }
        let store = &sources.store;
        let (first, last) = self.bounds(sources)?;
        if !self.filter.task_ids.is_empty() {
            return self.by_task(sources, first, last);
        }

        if self.newest_first {
            let before = self.from.map_or(last.next(), |from| from.min(last.next()));
            let Chunk {
                records,
                scanned_to,
                segments_skipped,
            } = store.read_before(before, first, &self.filter, self.limits)?;
            sources
                .metrics
                .log_segments_skipped
                .inc_by(segments_skipped);
            return Ok((records, (scanned_to > first).then_some(scanned_to)));
        }

        let after = self.from.unwrap_or_default().max(first.previous());
        let Chunk {
            records,
            scanned_to,
            segments_skipped,
        } = store.read_after(after, last, &self.filter, self.limits)?;
        sources
            .metrics
            .log_segments_skipped
            .inc_by(segments_skipped);

        Ok((records, (scanned_to < last).then_some(scanned_to)))
    }

    /// First and last place of the listing in log order, by the log's own clock.
    fn bounds(&self, sources: &Sources) -> Result<(Sequence, Sequence), ReadError> {
        let store = &sources.store;
        let seek = |time: Timestamp| store.seek_time(time.as_microsecond());
        let first = self
            .since
            .map(seek)
            .transpose()?
            .map_or(Sequence(1), Sequence::next);
        let last = self
            .until
            .map(seek)
            .transpose()?
            .unwrap_or(Sequence(u64::MAX));
        Ok((first.max(store.first_available()), last.min(store.head())))
    }

    fn by_task(
        &self,
        sources: &Sources,
        first: Sequence,
        last: Sequence,
    ) -> Result<(Vec<Record>, Option<Sequence>), ReadError> {
        let ReadLimits {
            records_max,
            bytes_max,
            scanned_max,
            scanned_bytes_max,
        } = self.limits;

        let (range, keep) = match (self.from, self.newest_first) {
            (None, false) => (first..=last, Keep::Oldest(scanned_max)),
            (Some(from), false) => (first.max(from.next())..=last, Keep::Oldest(scanned_max)),
            (None, true) => (first..=last, Keep::Newest(scanned_max)),
            (Some(from), true) => (first..=last.min(from.previous()), Keep::Newest(scanned_max)),
        };

        let mut places = sources
            .store
            .task_events(&self.filter.task_ids, range, keep)?;
        if self.newest_first {
            places.reverse();
        }
        let is_cut = places.len() == scanned_max;
        let (mut records, mut bytes, mut scanned_bytes) = (Vec::new(), 0, 0);
        let mut reached = None;

        for place in places.into_iter().map(|place| place.sequence) {
            if reached.is_some() && scanned_bytes >= scanned_bytes_max {
                return Ok((records, reached));
            }
            let record = sources.store.get(place)?;
            scanned_bytes += record.as_ref().map_or(0, Record::len);
            let record = record.filter(|record| self.filter.matches(record) && !record.is_erased());
            bytes += record.as_ref().map_or(0, Record::len);
            let is_full = records.len() >= records_max || bytes > bytes_max;
            if is_full && !records.is_empty() {
                return Ok((records, reached));
            }
            reached = Some(place);
            records.extend(record);
        }

        Ok((records, reached.filter(|_| is_cut)))
    }
}

// The encoding of a map has no fixed order, so labels are sorted into a list before a token is bound to them.
fn canonical(request: &v1::ListEventsRequest) -> v1::ListEventsRequest {
    let mut request = request.clone();
    if let Some(filter) = &mut request.filter {
        let mut labels: Vec<_> = mem::take(&mut filter.labels).into_iter().collect();
        labels.sort_unstable();
        filter.products.extend(
            labels
                .into_iter()
                .map(|(key, value)| format!("{key}\0{value}")),
        );
    }
    request
}

fn newest_first(number: i32) -> Result<bool, Malformed> {
    match v1::Order::try_from(number) {
        Ok(v1::Order::Unspecified | v1::Order::OldestFirst) => Ok(false),
        Ok(v1::Order::NewestFirst) => Ok(true),
        Err(_) => Err(Malformed::new(
            "order",
            format!("no order has the number {number}"),
        )),
    }
}

fn instant(
    field: &str,
    time: Option<prost_types::Timestamp>,
) -> Result<Option<Timestamp>, Malformed> {
    time.map(|time| instant_from_wire(field, time)).transpose()
}
