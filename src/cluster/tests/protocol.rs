//! What one node does, step by step.

use bytes::Bytes;

use crate::{
    cluster::{
        Author, Contents, Encoded, Entries, Entry, Group, GroupId, Input, Limits, Output, Position,
        Protocol, Refusal, Reply, Stop, ToldBy, Verdict, judge,
    },
    event::Epoch,
};

const ME: Author = Author(1);
const OTHER: Author = Author(2);
const LIMITS: Limits = Limits {
    drafts_max: 2,
    bytes_max: 100,
};

fn node() -> Protocol {
    Protocol::new(ME, Position::start(Epoch(7)), LIMITS)
}

fn group(id: u64) -> Group {
    Group {
        id: GroupId(id),
        drafts: 1,
        bytes: 10,
        is_from_peer: false,
    }
}

fn of_peer(id: u64) -> Group {
    Group {
        is_from_peer: true,
        ..group(id)
    }
}

/// A commit that puts one callback into quarantine: it changes the totals, and needs no record.
fn contents(author: Author, position: &Position) -> Contents {
    let before = position.totals;
    let mut after = before;
    after.quarantine_next += 1;
    Contents {
        author,
        name: String::new(),
        commit_time_micros: 0,
        before,
        after,
        entries: Entries::of(&[Entry::Quarantined {
            number: after.quarantine_next,
            value: Bytes::new(),
        }]),
    }
}

/// Has the node write this group; returns what it publishes.
fn write(node: &mut Protocol, id: u64) -> Encoded {
    let on = node.position().frame;
    let asked = node.handle(Input::Group(group(id)));
    let groups = vec![GroupId(id)];
    let must_write = false;
    assert_eq!(
        asked,
        [Output::Decide {
            on,
            groups,
            must_write
        }]
    );
    decided(node)
}

fn decided(node: &mut Protocol) -> Encoded {
    let on = node.position().frame;
    let contents = Some(Box::new(contents(ME, node.position())));
    let published = node.handle(Input::Decided { on, contents });
    let [Output::Publish { expected, frame }] = &published[..] else {
        panic!("{published:?}");
    };
    assert_eq!(*expected, node.position().seen);
    frame.clone()
}

/// The next message: a frame of this author.
fn message(node: &Protocol, author: Author) -> Input {
    let position = node.position();
    let frame = contents(author, position).encode(position.link()).unwrap();
    Input::Message {
        sequence: position.seen + 1,
        bytes: frame.bytes,
    }
}

fn hears_of(node: &mut Protocol, author: Author) -> Vec<Output> {
    let message = message(node, author);
    node.handle(message)
}

fn has_applied(outputs: &[Output]) -> bool {
    matches!(outputs.first(), Some(Output::Apply { .. }))
}

fn answer(id: u64, through: u64, by: ToldBy) -> Output {
    Output::Answer {
        group: GroupId(id),
        through,
        by,
    }
}

fn hand_over(id: u64, to: Author) -> Output {
    Output::HandOver {
        group: GroupId(id),
        to,
    }
}

fn refuse(id: u64, why: Refusal) -> Output {
    Output::Refuse {
        group: GroupId(id),
        why,
    }
}

#[test]
fn the_ack_of_a_frame_applies_it_and_answers_its_groups() {
    let mut node = node();
    let frame = write(&mut node, 1);
    let done = node.handle(Input::Acked {
        chain: frame.chain,
        sequence: 1,
    });
    assert!(has_applied(&done));
    assert_eq!(done[1..], [answer(1, 1, ToldBy::ThisNode)]);
    assert_eq!(node.writer(), Some(ME));

    let again = Input::Message {
        sequence: 1,
        bytes: frame.bytes,
    };
    assert_eq!(node.handle(again), [], "the follower has it, too");
}

#[test]
fn a_frame_in_doubt_is_published_again_as_it_is_and_nothing_else_is_decided() {
    let mut node = node();
    let frame = write(&mut node, 1);
    let chain = frame.chain;
    assert_eq!(node.handle(Input::Group(group(2))), []);
    let again = node.handle(Input::Unanswered { chain });
    assert_eq!(again, [Output::Publish { expected: 0, frame }]);
}

#[test]
fn an_ack_elsewhere_than_at_the_next_message_settles_nothing() {
    let mut node = node();
    let chain = write(&mut node, 1).chain;
    assert_eq!(node.handle(Input::Acked { chain, sequence: 2 }), []);
    assert_eq!(node.in_doubt(), Some(chain));
}

#[test]
fn a_refused_frame_waits_for_the_message_that_was_faster_and_its_group_goes_to_the_new_writer() {
    let mut node = node();
    let chain = write(&mut node, 1).chain;
    let fetched = node.handle(Input::Refused { chain });
    assert_eq!(fetched, [Output::Fetch { sequence: 1 }]);
    let faster = hears_of(&mut node, OTHER);
    assert!(has_applied(&faster));
    assert_eq!(faster[1..], [hand_over(1, OTHER)]);
}

#[test]
fn a_lost_ack_is_made_up_for_by_the_follower() {
    let mut node = node();
    let frame = write(&mut node, 1);
    let done = node.handle(Input::Message {
        sequence: 1,
        bytes: frame.bytes,
    });
    assert_eq!(done[1..], [answer(1, 1, ToldBy::ThisNode)]);
}

#[test]
fn what_another_node_has_written_is_answered_when_it_is_applied_here() {
    let mut node = node();
    hears_of(&mut node, OTHER);
    let handed = node.handle(Input::Group(group(1)));
    assert_eq!(handed, [hand_over(1, OTHER)]);
    let reply = Reply::Written { through: 2 };
    let group = GroupId(1);
    assert_eq!(node.handle(Input::Replied { group, reply }), []);
    let applied = hears_of(&mut node, OTHER);
    assert_eq!(applied[1..], [answer(1, 2, ToldBy::Writer)]);
}

#[test]
fn a_writer_that_does_not_answer_is_replaced_and_the_order_of_the_groups_stays() {
    let mut node = node();
    hears_of(&mut node, OTHER);
    for id in 1..=6 {
        node.handle(Input::Group(group(id)));
    }
    assert_eq!(node.handed_over().count(), 4, "the others wait");
    let reply = Reply::Nothing;
    let group = GroupId(1);
    let takes_over = node.handle(Input::Replied { group, reply });
    let groups = vec![GroupId(1), GroupId(5)];
    let must_write = false;
    assert_eq!(
        takes_over,
        [Output::Decide {
            on: 1,
            groups,
            must_write
        }]
    );
}

#[test]
fn a_node_that_is_not_the_writer_hands_nothing_on_for_others() {
    let mut node = node();
    hears_of(&mut node, OTHER);
    let refused = node.handle(Input::Group(of_peer(1)));
    assert_eq!(refused, [refuse(1, Refusal::NotWriter)]);

    // Neither when it has been overtaken.
    let mut node = self::node();
    node.handle(Input::Group(of_peer(1)));
    decided(&mut node);
    let overtaken = hears_of(&mut node, OTHER);
    assert_eq!(overtaken[1..], [refuse(1, Refusal::NotWriter)]);
}

#[test]
fn a_decision_on_an_older_log_is_made_again() {
    let mut node = node();
    node.handle(Input::Group(group(1)));
    let stale = Some(Box::new(contents(ME, node.position())));
    hears_of(&mut node, ME);
    let (on, contents) = (0, stale);
    assert_eq!(node.handle(Input::Decided { on, contents }), []);
    decided(&mut node);
}

#[test]
fn a_group_that_only_repeats_is_answered_without_a_frame() {
    let mut node = node();
    hears_of(&mut node, ME);
    node.handle(Input::Group(group(1)));
    let (on, contents) = (1, None);
    let answered = node.handle(Input::Decided { on, contents });
    assert_eq!(answered, [answer(1, 1, ToldBy::ThisNode)]);
}

#[test]
fn groups_share_a_frame_up_to_its_limits() {
    let mut node = node();
    write(&mut node, 1);
    for id in 2..=4 {
        node.handle(Input::Group(group(id)));
    }
    let next = hears_of(&mut node, ME); // the frame itself
    let groups = vec![GroupId(2), GroupId(3)];
    let decide = Output::Decide {
        on: 1,
        groups,
        must_write: false,
    };
    assert_eq!(next[1..], [answer(1, 1, ToldBy::ThisNode), decide]);
}

#[test]
fn a_node_that_was_away_writes_nothing_before_it_has_seen_what_others_have() {
    let mut node = node().listening(true);
    assert_eq!(node.handle(Input::Silent), [Output::Reconnect]);
    assert_eq!(node.handle(Input::Group(group(1))), []);
    assert_eq!(node.handle(Input::Heard { frame: 1 }), []);
    let listened = Input::Listened { last: 0 };
    assert_eq!(node.handle(listened), [], "another node has a frame");
    assert_eq!(node.handle(Input::Silent), [Output::Reconnect]);
    assert_eq!(node.heard(), 1);

    let seen = hears_of(&mut node, ME);
    assert!(has_applied(&seen));
    let (on, groups, must_write) = (1, vec![GroupId(1)], true);
    let decide = Output::Decide {
        on,
        groups,
        must_write,
    };
    assert_eq!(seen[1..], [decide]);
}

#[test]
fn a_frame_in_doubt_is_not_published_again_where_another_node_has_a_frame_at_its_place() {
    let mut node = node();
    let chain = write(&mut node, 1).chain;
    node.handle(Input::Deaf);
    assert_eq!(node.handle(Input::Unanswered { chain }), []);
    node.handle(Input::Heard { frame: 1 });
    let fetch = Output::Fetch { sequence: 1 };
    let listened = node.handle(Input::Listened { last: 0 });
    assert_eq!(listened, std::slice::from_ref(&fetch));
    assert_eq!(node.handle(Input::Unanswered { chain }), [fetch]);
}

#[test]
fn only_the_writer_ticks_and_a_silent_node_reconnects_and_tries_to_write() {
    let mut node = node();
    hears_of(&mut node, OTHER);
    assert_eq!(node.handle(Input::Quiet), []);
    let (on, groups, must_write) = (1, Vec::new(), true);
    let tick = Output::Decide {
        on,
        groups,
        must_write,
    };
    assert_eq!(node.handle(Input::Silent), [Output::Reconnect, tick]);
    let frame = decided(&mut node);

    let again = node.handle(Input::Silent);
    let publish = Output::Publish { expected: 1, frame };
    assert_eq!(again, [Output::Reconnect, publish], "still in doubt");

    let mut writer = self::node();
    hears_of(&mut writer, ME);
    assert!(matches!(
        writer.handle(Input::Quiet)[..],
        [Output::Decide {
            must_write: true,
            ..
        }]
    ));
}

#[test]
fn a_group_that_is_given_up_is_refused_at_once_and_its_frame_is_still_settled() {
    let mut node = node();
    let frame = write(&mut node, 1);
    let refused = node.handle(Input::GiveUp(GroupId(1)));
    assert_eq!(refused, [refuse(1, Refusal::GaveUp)]);
    assert_eq!(node.in_doubt(), Some(frame.chain));
    let done = node.handle(Input::Acked {
        chain: frame.chain,
        sequence: 1,
    });
    assert!(has_applied(&done) && done.len() == 1);
}

#[test]
fn a_message_that_counts_for_nobody_puts_the_frame_in_doubt_out() {
    let mut node = node();
    write(&mut node, 1);
    let skipped = node.handle(Input::Message {
        sequence: 1,
        bytes: Bytes::from("else"),
    });
    let (on, groups, must_write) = (0, vec![GroupId(1)], false);
    let expected = [
        Output::Skipped {
            sequence: 1,
            is_void: false,
        },
        Output::Decide {
            on,
            groups,
            must_write,
        },
    ];
    assert_eq!(skipped, expected);
    decided(&mut node);
}

#[test]
fn a_node_with_a_hole_refuses_everything_and_applies_nothing() {
    let mut node = node();
    write(&mut node, 1);
    node.handle(Input::Group(group(2)));
    let jump = Input::Message {
        sequence: 5,
        bytes: Bytes::new(),
    };
    let stopped = node.handle(jump);
    assert!(matches!(stopped[0], Output::Stopped(Stop::Hole(_))));
    let refused = [refuse(1, Refusal::Stopped), refuse(2, Refusal::Stopped)];
    assert_eq!(stopped[1..], refused);

    let group = node.handle(Input::Group(group(3)));
    assert_eq!(group, [refuse(3, Refusal::Stopped)]);
    assert_eq!(hears_of(&mut node, OTHER), []);
}

#[test]
fn the_frame_that_a_node_publishes_is_applied_by_every_other() {
    let mut node = node();
    let frame = write(&mut node, 1);
    let verdict = judge(&Position::start(Epoch(7)), 1, &frame.bytes);
    assert!(matches!(verdict, Verdict::Apply(_)));
}
