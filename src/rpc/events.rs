//! `blobcast.v1.EventService`.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{self, Poll},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status};

use super::{
    Context,
    access::{Caller, ClientName},
    call, deadline, errors, page, peer, raw_body,
    stream::{EventBody, HandedOver},
};
use crate::{
    budget::Payer,
    event::{Cursor, Filter, LABELS_MAX, Product, Record, Selectable, Sequence, TaskId},
    store::{Chunk, Keep, ReadError, ReadLimits},
    subscription::{
        Control, Heard, Message, OnExpired, Opening, Sources, Start, StreamEnd, Subscription,
        WAIT_NAME,
    },
    trace,
    wire::{
        Delivery, Frame, Malformed, Raw, duration, instant_from_wire, positive_duration,
        service::event_service_server,
        v1::{self, subscribe_request},
    },
};

/// Heartbeats of a stream that asks for none in particular: well below the idle time-outs of common proxies.
const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(15);
const HEARTBEAT_MIN: Duration = Duration::from_secs(1);
/// Proxies cut a stream on which nothing came for a minute.
const HEARTBEAT_MAX: Duration = Duration::from_secs(45);
/// How long `WaitTask` waits if not told: proxies cut a call that is not answered within a minute.
const WAIT_DEFAULT: Duration = Duration::from_secs(50);
/// How long `WaitTask` waits at most: longer than any generation takes (RunBlob gives up after 15 minutes).
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// So much before the call's own deadline `WaitTask` answers, or a tenth of the time that is left if that is less: the client's clock
/// began to run before the call arrived, and runs on until the answer has arrived.
const WAIT_MARGIN_MAX: Duration = Duration::from_secs(1);
/// A name for people need not be longer.
const CLIENT_NAME_CHARS_MAX: usize = 128;
/// `GetTask` answers in one message; clients take 4 MiB by default, and some room is for framing.
pub(super) const TASK_BYTES_MAX: usize = 4 * 1024 * 1024 - 64 * 1024;
/// Records one page of `ListEvents` looks at before it ends early, so that a rare filter does not hold a thread.
const PAGE_SCANNED_MAX: usize = 16_384;
/// The same in bytes.
const PAGE_SCANNED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The service.
#[derive(Clone, Debug)]
pub struct Events(Context);

impl Events {
    /// The service on `context`.
    pub fn new(context: Context) -> Self {
        Self(context)
    }

    async fn open(&self, opening: Opening) -> Result<Subscription, Status> {
        let sources = &self.0.sources;
        let subscription = Subscription::open(Arc::clone(sources), opening).await;
        let mut subscription = subscription.map_err(|error| errors::open(sources, &error))?;

        // A change of the credentials is first put into force; then the streams that are open are reviewed. A stream that this review
        // has missed is found here.
        let reviewed = subscription.review(|client, filter| self.0.gate.review(client, filter));
        reviewed.map_err(|end| errors::end(sources, &end))?;
        Ok(subscription)
    }

    /// The subscription that `WaitTask` is: everything retained of the task, then what comes.
    async fn open_wait(
        &self,
        filter: Filter,
        (peer, heard): (String, Heard),
        caller: Caller,
        payer: Payer,
        call: Option<trace::Context>,
    ) -> Result<Subscription, Status> {
        self.open(Opening {
            filter: caller.restrict(filter)?,
            client: caller.0,
            payer,
            start: Start::Default,
            on_expired: OnExpired::Earliest,
            until_terminal: false,
            heartbeat_interval: WAIT_MAX,
            deadline: None,
            client_name: WAIT_NAME.to_owned(),
            peer,
            heard,
            call,
        })
        .await
    }

    /// The answer to `WaitTask`.
    async fn waited(
        &self,
        payer: Payer,
        found: Found,
        done: bool,
        include_raw: bool,
    ) -> Result<Response<Frame>, Status> {
        let sources = &self.0.sources;
        let epoch = sources.store.epoch();
        let frame = move |record: Option<Record>| Frame::Waited {
            event: record.map(|record| Delivery::new(epoch, record, include_raw)),
            done,
        };
        let place = match found {
            Found::None => return Ok(Response::new(frame(None))),
            Found::InTheLog(place) => place,
            Found::Here(record) => {
                let (place, frame) = (record.sequence(), frame(Some(record)));
                if let Some(granted) = self.0.answers.try_take(&payer, frame.encoded_len()) {
                    return Ok(self.0.answers.respond(frame.encoded(), granted));
                }
                place // not held while it waits for its turn
            }
        };
        let granted = self
            .0
            .answers
            .take(&payer, 2 * sources.memory.event_bytes_max)
            .await?;
        // Retention may have taken it meanwhile, or it was erased: the task is over all the same.
        let read = move |sources: &Sources| {
            let record = sources
                .store
                .get(place)?
                .filter(|record| !record.is_erased());
            Ok((frame(record).encoded(), granted))
        };
        let (message, granted) = self.0.read(read).await?;
        Ok(self.0.answers.respond(message, granted))
    }

    fn subscription_limits(
        &self,
        caller: &Caller,
        heartbeat_interval: Duration,
    ) -> v1::SubscriptionLimits {
        let count = |limit: usize| u32::try_from(limit).unwrap_or(u32::MAX);
        v1::SubscriptionLimits {
            heartbeat_interval: Some(duration(heartbeat_interval)),
            task_ids_max: count(self.0.limits_of(caller).task_ids_max),
            products_max: count(self.0.filter_limits.products_max),
            labels_max: count(LABELS_MAX),
            subscriptions_max: count(self.0.sources.registry.limit(caller.0.as_deref())),
        }
    }
}

#[tonic::async_trait]
impl event_service_server::EventService for Events {
    /// The events are in the answer's extensions; see [`HandedOver`].
    type SubscribeStream = tokio_stream::Once<Result<v1::SubscribeResponse, Status>>;

    async fn subscribe(
        &self,
        request: Request<v1::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let (caller, (peer, heard), deadline) = (
            self.0.gate.caller_of(&request)?,
            peer(&request),
            deadline::of(&request),
        );
        let (payer, call) = (Payer::of(&request, &caller), call(&request));
        if request.get_ref().client_name.chars().count() > CLIENT_NAME_CHARS_MAX {
            let problem = format!("at most {CLIENT_NAME_CHARS_MAX} characters");
            return Err(errors::malformed(Malformed::new("client_name", problem)));
        }
        ClientName::note(&request, &request.get_ref().client_name);
        let request = request.into_inner();
        let start = start(request.start).map_err(errors::malformed)?;
        let on_expired = on_expired(request.on_expired).map_err(errors::malformed)?;
        let heartbeat_interval =
            heartbeat(request.heartbeat_interval).map_err(errors::malformed)?;
        let filter = self.0.filter(request.filter, &caller)?;
        if request.until_terminal && filter.task_ids.is_empty() {
            let problem = "needs filter.task_ids: it ends the stream when those tasks are over";
            return Err(errors::malformed(Malformed::new("until_terminal", problem)));
        }
        let opening = Opening {
            filter,
            start,
            on_expired,
            until_terminal: request.until_terminal,
            heartbeat_interval,
            deadline,
            client: caller.0.clone(),
            payer,
            client_name: request.client_name,
            peer,
            heard,
            call,
        };
        let mut subscription = self.open(opening).await?;
        subscription.note_opened();
        let (sources, limits) = (
            Arc::clone(&self.0.sources),
            self.subscription_limits(&caller, heartbeat_interval),
        );
        let body = EventBody::new(sources, subscription, request.include_raw, limits);
        let mut answer = Response::new(tokio_stream::once(Err(Status::internal(
            "the events were not handed over",
        ))));
        answer.extensions_mut().insert(HandedOver::new(body));
        Ok(answer)
    }

    async fn wait_task(
        &self,
        request: Request<v1::WaitTaskRequest>,
    ) -> Result<Response<Frame>, Status> {
        let (caller, peer, call) = (
            self.0.gate.caller_of(&request)?,
            peer(&request),
            call(&request),
        );
        let (payer, call_deadline) = (Payer::of(&request, &caller), deadline::of(&request));
        let v1::WaitTaskRequest {
            task_id,
            timeout,
            include_raw,
            product,
        } = request.into_inner();
        let filter = one_task(&task_id, &product)?;
        let deadline = wait_until(
            Instant::now(),
            patience(timeout).map_err(errors::malformed)?,
            call_deadline,
        );
        let of_task = caller.restrict(filter.clone())?;
        let mut subscription = self
            .open_wait(filter, peer, caller, payer.clone(), call)
            .await?;
        let (mut latest, mut terminal, mut caught_up) = (Found::default(), Found::default(), false);
        // What is retained is read to its end also when the time-out is zero, so "is it done?" can be asked by it.
        while !(caught_up && terminal.is_some()) {
            let seen = match poll_fn(|cx| Poll::Ready(poll_next(&mut subscription, cx))).await {
                Poll::Ready(seen) => seen,
                Poll::Pending => {
                    // Many may wait for tasks with large events.
                    latest.let_go();
                    terminal.let_go();
                    if caught_up {
                        let Ok(seen) = timeout_at(deadline, next(&mut subscription)).await else {
                            break;
                        };
                        seen
                    } else {
                        next(&mut subscription).await
                    }
                }
            };
            match seen {
                Some(Ok(Seen::Event(record))) if record.status().is_terminal() => {
                    terminal = Found::Here(record)
                }
                Some(Ok(Seen::Event(record))) => latest = Found::Here(record),
                Some(Ok(Seen::CaughtUp)) => {
                    caught_up = true;
                    let of_task = of_task.clone();
                    // What was erased does not come, but it has ended its task.
                    if !terminal.is_some()
                        && self
                            .0
                            .read(move |sources| was_terminal_event_erased(sources, &of_task))
                            .await?
                    {
                        return self.waited(payer, Found::None, true, include_raw).await;
                    }
                }
                Some(Ok(Seen::Other)) => {}
                Some(Err(end)) => return Err(errors::end(&self.0.sources, &end)),
                None => return Err(errors::draining()),
            }
        }
        drop(subscription);
        let done = terminal.is_some();
        let found = if done { terminal } else { latest };
        self.waited(payer, found, done, include_raw).await
    }

    async fn get_task(
        &self,
        request: Request<v1::GetTaskRequest>,
    ) -> Result<Response<Frame>, Status> {
        let caller = self.0.gate.caller_of(&request)?;
        let payer = Payer::of(&request, &caller);
        let v1::GetTaskRequest {
            task_id,
            include_raw,
            product,
        } = request.into_inner();
        let filter = caller.restrict(one_task(&task_id, &product)?)?;
        // Once as it is stored, once as it is sent.
        let granted = self.0.answers.take(&payer, 2 * TASK_BYTES_MAX).await?;
        let read = move |sources: &Sources| {
            let events = task_events(sources, &filter, include_raw)?;
            let page = |events: Vec<Delivery>| {
                (!events.is_empty()).then(|| {
                    Frame::Page {
                        events,
                        next_page_token: String::new(),
                    }
                    .encoded()
                })
            };
            Ok((events.map(page), granted))
        };
        let (page, granted) = self.0.read(read).await?;
        match page.ok_or_else(|| errors::task_too_large(TASK_BYTES_MAX, &product, include_raw))? {
            None => Err(errors::task_not_found(&task_id, &product)),
            Some(page) => Ok(self.0.answers.respond(page, granted)),
        }
    }

    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Result<Response<Frame>, Status> {
        let caller = self.0.gate.caller_of(&request)?;
        let payer = Payer::of(&request, &caller);
        let mut request = request.into_inner();
        let page_size =
            page::size(std::mem::take(&mut request.page_size)).map_err(errors::malformed)?;
        let token = std::mem::take(&mut request.page_token);
        let (binding, head) = (
            page::binding(&canonical(&request)),
            self.0.sources.store.head(),
        );
        let listing = Listing {
            from: page::place(&token, binding, head.0)
                .map_err(errors::malformed)?
                .map(Sequence),
            newest_first: newest_first(request.order).map_err(errors::malformed)?,
            since: instant("since", request.since).map_err(errors::malformed)?,
            until: instant("until", request.until).map_err(errors::malformed)?,
            filter: self.0.filter(request.filter, &caller)?,
            limits: ReadLimits {
                records_max: page_size,
                bytes_max: page::PAGE_BYTES_MAX,
                scanned_max: PAGE_SCANNED_MAX,
                scanned_bytes_max: PAGE_SCANNED_BYTES_MAX,
            },
        };
        let granted = self.0.answers.take(&payer, self.0.page_bytes_max()).await?;
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
        let (page, granted) = self.0.read(read).await?;
        Ok(self.0.answers.respond(page, granted))
    }

    async fn get_raw_body(
        &self,
        request: Request<v1::GetRawBodyRequest>,
    ) -> Result<Response<Frame>, Status> {
        raw_body::get(&self.0, request).await
    }

    async fn get_log_info(
        &self,
        request: Request<v1::GetLogInfoRequest>,
    ) -> Result<Response<v1::GetLogInfoResponse>, Status> {
        self.0.gate.caller_of(&request)?;
        let store = &self.0.sources.store;
        let head = store.head();
        let summary = store.summary();
        let first_available = self
            .0
            .sources
            .first_available()
            .map(|place| store.cursor(place).to_string());
        Ok(Response::new(v1::GetLogInfoResponse {
            epoch: store.epoch().to_string(),
            first_available: first_available.unwrap_or_default(),
            head: store.cursor(head).to_string(),
            event_count: summary.event_count,
            event_bytes: summary.event_bytes,
            quarantine_count: summary.quarantine_count,
            retention_age_max: Some(duration(self.0.retention().event_age_max)),
            retention_bytes_max: self.0.retention().event_bytes_max,
        }))
    }
}

/// An event that `WaitTask` has come by.
#[derive(Default)]
enum Found {
    #[default]
    None,
    Here(Record),
    /// Not held while the call waits: it is read again.
    InTheLog(Sequence),
}

impl Found {
    fn is_some(&self) -> bool {
        !matches!(self, Self::None)
    }

    fn let_go(&mut self) {
        if let Self::Here(record) = self {
            *self = Self::InTheLog(record.sequence());
        }
    }
}

/// What `WaitTask` looks at in a stream.
enum Seen {
    Event(Record),
    CaughtUp,
    Other,
}

async fn next(subscription: &mut Subscription) -> Option<Result<Seen, StreamEnd>> {
    poll_fn(|cx| poll_next(subscription, cx)).await
}

fn poll_next(
    subscription: &mut Subscription,
    cx: &mut task::Context<'_>,
) -> Poll<Option<Result<Seen, StreamEnd>>> {
    let seen = |message: Message<'_>| match message {
        Message::Event { records, at, .. } => Seen::Event(records[at].clone()),
        Message::Control(Control::CaughtUp { .. }) => Seen::CaughtUp,
        Message::Control(_) => Seen::Other,
    };
    subscription
        .poll_message(cx)
        .map(|next| next.map(|message| message.map(seen)))
}

/// Whether a terminal event of a filter's task and products was erased. Its labels were, too: so to a client that is bound to some it
/// is as if it had never been.
fn was_terminal_event_erased(sources: &Sources, filter: &Filter) -> Result<bool, ReadError> {
    if filter.bound.is_some() {
        return Ok(false);
    }
    let mut was_erased = false;
    sources.store.each_task_event(
        &filter.task_ids,
        Sequence(1)..=sources.store.head(),
        |event| {
            let is_asked_for =
                filter.products.is_empty() || filter.products.contains(&event.product);
            was_erased |= is_asked_for && event.is_erased && event.status.is_terminal();
        },
    )?;
    Ok(was_erased)
}

/// Every event of a filter's task and products; `None` if they are more than one answer holds. What is not to be sent is not
/// held either.
fn task_events(
    sources: &Sources,
    filter: &Filter,
    include_raw: bool,
) -> Result<Option<Vec<Delivery>>, ReadError> {
    let store = &sources.store;
    let places = store.task_events(&filter.task_ids, Sequence(1)..=store.head(), Keep::All)?;
    let (mut events, mut bytes) = (Vec::new(), 0);
    let is_asked_for =
        |product: &Product| filter.products.is_empty() || filter.products.contains(product);
    for place in places
        .into_iter()
        .filter(|place| is_asked_for(&place.product))
    {
        // Retention may take one between the two reads; it is then no longer retained.
        let found = store.get(place.sequence)?;
        let Some(record) = found.filter(|record| filter.matches(record) && !record.is_erased())
        else {
            continue;
        };
        let mut event = Delivery::new(store.epoch(), record, include_raw);
        if event.raw != Raw::Sent {
            event.record = event.record.without_raw();
        }
        bytes += event.encoded_len();
        if bytes > TASK_BYTES_MAX {
            return Ok(None);
        }
        events.push(event);
    }
    Ok(Some(events))
}

/// One page of a listing, as a question to the store.
struct Listing {
    /// The last place of the page before.
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
                // Retention took the oldest between two looks at it. A listing shows what is retained, so: what is now.
                Err(ReadError::Expired) => {}
                page => return page,
            }
        }
    }

    fn try_page(&self, sources: &Sources) -> Result<(Vec<Record>, Option<Sequence>), ReadError> {
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
            } = store.read_before(before, first, &self.filter, self.limits)?;
            return Ok((records, (scanned_to > first).then_some(scanned_to)));
        }
        // A page token that retention has passed continues with what is left: a listing shows what is retained.
        let after = self.from.unwrap_or_default().max(first.previous());
        let Chunk {
            records,
            scanned_to,
        } = store.read_after(after, last, &self.filter, self.limits)?;
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
        let mut labels: Vec<_> = std::mem::take(&mut filter.labels).into_iter().collect();
        labels.sort_unstable();
        filter.products.extend(
            labels
                .into_iter()
                .map(|(key, value)| format!("{key}\0{value}")),
        );
    }
    request
}

/// One task, of one product if it is named.
fn one_task(task_id: &str, product: &str) -> Result<Filter, Status> {
    let malformed = |field, error: &dyn std::error::Error| {
        errors::malformed(Malformed::new(field, error.to_string()))
    };
    let task_id = TaskId::parse(task_id).map_err(|error| malformed("task_id", &error))?;
    let product = (!product.is_empty()).then(|| Product::parse(product));
    let product = product
        .transpose()
        .map_err(|error| malformed("product", &error))?;
    Ok(Filter {
        task_ids: [task_id].into(),
        products: product.into_iter().collect(),
        ..Filter::default()
    })
}

fn start(start: Option<subscribe_request::Start>) -> Result<Start, Malformed> {
    match start {
        None => Ok(Start::Default),
        Some(subscribe_request::Start::AfterCursor(text)) => {
            let cursor = Cursor::parse(&text);
            cursor
                .map(Start::After)
                .map_err(|error| Malformed::new("after_cursor", error.to_string()))
        }
        Some(subscribe_request::Start::Since(time)) => {
            Ok(Start::Since(instant_from_wire("since", time)?))
        }
        Some(subscribe_request::Start::Position(number)) => {
            match v1::StartPosition::try_from(number) {
                Ok(v1::StartPosition::Unspecified) => Ok(Start::Default),
                Ok(v1::StartPosition::Earliest) => Ok(Start::Earliest),
                Ok(v1::StartPosition::Latest) => Ok(Start::Latest),
                Err(_) => Err(Malformed::new(
                    "position",
                    format!("no position has the number {number}"),
                )),
            }
        }
    }
}

fn on_expired(number: i32) -> Result<OnExpired, Malformed> {
    match v1::OnExpired::try_from(number) {
        Ok(v1::OnExpired::Unspecified | v1::OnExpired::Fail) => Ok(OnExpired::Fail),
        Ok(v1::OnExpired::Earliest) => Ok(OnExpired::Earliest),
        Ok(v1::OnExpired::Latest) => Ok(OnExpired::Latest),
        Err(_) => Err(Malformed::new(
            "on_expired",
            format!("no choice has the number {number}"),
        )),
    }
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

fn heartbeat(requested: Option<prost_types::Duration>) -> Result<Duration, Malformed> {
    match requested {
        None => Ok(HEARTBEAT_DEFAULT),
        Some(requested) => {
            Ok(positive_duration("heartbeat_interval", requested)?
                .clamp(HEARTBEAT_MIN, HEARTBEAT_MAX))
        }
    }
}

/// How long `WaitTask` waits.
fn patience(requested: Option<prost_types::Duration>) -> Result<Duration, Malformed> {
    match requested {
        None => Ok(WAIT_DEFAULT),
        Some(requested) => Ok(positive_duration("timeout", requested)?.min(WAIT_MAX)),
    }
}

/// When `WaitTask` stops waiting.
fn wait_until(now: Instant, patience: Duration, call_deadline: Option<Instant>) -> Instant {
    let Some(call_deadline) = call_deadline else {
        return now + patience;
    };
    let left = call_deadline.saturating_duration_since(now);
    now + patience.min(left - WAIT_MARGIN_MAX.min(left / 10))
}

fn instant(
    field: &str,
    time: Option<prost_types::Timestamp>,
) -> Result<Option<Timestamp>, Malformed> {
    time.map(|time| instant_from_wire(field, time)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_has_a_default_and_a_maximum_and_is_not_negative() {
        let asked = |seconds, nanos| patience(Some(prost_types::Duration { seconds, nanos }));
        assert_eq!(patience(None), Ok(Duration::from_secs(50)));
        let cases = [
            ((0, 0), Duration::ZERO),
            ((0, 1), Duration::from_nanos(1)),
            ((3_599, 999_999_999), Duration::new(3_599, 999_999_999)),
            ((3_600, 0), Duration::from_secs(3_600)),
            ((3_600, 1), Duration::from_secs(3_600)),
            ((i64::MAX, i32::MAX), Duration::from_secs(3_600)),
        ];
        for ((seconds, nanos), waited) in cases {
            assert_eq!(asked(seconds, nanos), Ok(waited), "{seconds} s {nanos} ns");
        }
        for (seconds, nanos) in [(-1, 0), (0, -1), (i64::MIN, i32::MIN)] {
            assert_eq!(
                asked(seconds, nanos).unwrap_err().field,
                "timeout",
                "{seconds} s {nanos} ns"
            );
        }
    }

    #[test]
    fn a_wait_ends_a_little_before_the_deadline_of_its_call() {
        let now = Instant::now();
        let waited = |patience: u64, deadline: Option<u64>| {
            let deadline = deadline.map(|millis| now + Duration::from_millis(millis));
            wait_until(now, Duration::from_millis(patience), deadline)
                .duration_since(now)
                .as_millis()
        };
        assert_eq!(
            (waited(50_000, None), waited(50_000, Some(60_000))),
            (50_000, 50_000)
        );
        assert_eq!(
            (waited(50_000, Some(30_000)), waited(50_000, Some(2_000))),
            (29_000, 1_800)
        );
        assert_eq!(
            (
                waited(50_000, Some(10)),
                waited(0, Some(10)),
                waited(50_000, Some(0))
            ),
            (9, 0, 0)
        );
    }
}
