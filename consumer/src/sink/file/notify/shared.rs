//! A notifier that several targets share: what they order within a moment of each other is notified once.
//!
//! Each target goes on ordering its own changes and hearing of them. Between them and the notifier, their orders are
//! combined into one under a number of its own; whoever has taken that has taken all that was ordered by then.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use rollcall_shared::{
    model::{name::TargetName, signal::Incarnation},
    process::time::sleep_until,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use tokio_util::sync::CancellationToken;

use super::{Notification, Order};
use crate::target::generation::Generation;

/// How long the orders of other targets are waited for after one: what changes together is rendered within less.
const GATHER_DELAY: Duration = Duration::from_millis(100);

/// The orders of several targets as one. Pure.
#[derive(Debug, Default)]
struct Combination {
    /// What each target has ordered last, and who has taken it.
    orders: BTreeMap<TargetName, Order>,
    /// The number of the last combined order, and the changes that it covers.
    last: Option<(Generation, BTreeMap<TargetName, Generation>)>,
}

impl Combination {
    /// The order for all that was ordered, if it is another one than the last.
    fn next(&mut self, now: Timestamp) -> Option<Order> {
        let covered: BTreeMap<TargetName, Generation> =
            self.orders.iter().map(|(target, order)| (target.clone(), order.generation)).collect();
        let is_news = |(target, generation): (&TargetName, &Generation)| {
            self.last.as_ref().and_then(|(_, covered)| covered.get(target)) != Some(generation)
        };
        if !covered.iter().any(is_news) {
            return None;
        }
        let generation = Generation::after(self.last.as_ref().map(|(last, _)| *last), now);
        self.last = Some((generation, covered));
        let mut taken = self.orders.values().map(|order| &order.taken);
        let first: BTreeSet<Incarnation> = taken.next().cloned().unwrap_or_default();
        let taken = taken.fold(first, |all, these| all.intersection(these).copied().collect());
        let was_complete = self.orders.values().all(|order| order.was_complete);
        Some(Order { generation, taken, was_complete })
    }

    /// A target has ended. Where it comes back with the same change, nobody may have told it that this was taken: it is
    /// ordered anew.
    fn leave(&mut self, target: &TargetName) {
        self.orders.remove(target);
        if let Some((_, covered)) = &mut self.last {
            covered.remove(target);
        }
    }

    /// What each target is to hear of a notification of a combined order.
    fn notify(&mut self, notification: &Notification) -> Vec<(TargetName, Notification)> {
        let Notification { generation, is_complete, receivers } = notification;
        let Some((last, covered)) = &self.last else { return vec![] };
        if last != generation {
            return vec![];
        }
        let mut heard = vec![];
        for (target, generation) in covered {
            let order = self.orders.get_mut(target).filter(|order| order.generation == *generation);
            if let Some(order) = order {
                (order.was_complete, order.taken) = (*is_complete, receivers.clone());
                heard
                    .push((target.clone(), Notification { generation: *generation, ..notification.clone() }));
            }
        }
        heard
    }
}

/// What a target says to the notifier that it shares.
#[derive(Debug)]
pub enum Message {
    /// It takes part from now on.
    Joined(TargetName, watch::Sender<Option<Notification>>),
    /// It has a change.
    Ordered(TargetName, Order),
    /// It has ended.
    Left(TargetName),
}

/// Stands between the targets and the notifier that they share.
#[derive(Debug)]
pub struct SharedNotifier {
    /// What the targets say.
    pub messages: mpsc::Receiver<Message>,
    /// Where the combined orders go.
    pub orders: watch::Sender<Option<Order>>,
    /// What the notifier says of them.
    pub notifications: watch::Receiver<Option<Notification>>,
    /// Asks it to end.
    pub stop: CancellationToken,
}

impl SharedNotifier {
    /// Runs until it is asked to end, or no target can take part any more.
    pub async fn run(mut self) {
        let (mut combination, mut members) = (Combination::default(), BTreeMap::new());
        let mut order_at: Option<Instant> = None;
        loop {
            tokio::select! {
                // Every branch is cancel safe: channels and a timer.
                () = self.stop.cancelled() => return,
                message = self.messages.recv() => match message {
                    None => return,
                    Some(Message::Joined(target, member)) => drop(members.insert(target, member)),
                    Some(Message::Left(target)) => {
                        members.remove(&target);
                        combination.leave(&target);
                    }
                    Some(Message::Ordered(target, order)) => {
                        combination.orders.insert(target, order);
                        order_at.get_or_insert_with(|| Instant::now() + GATHER_DELAY);
                    }
                },
                Ok(()) = self.notifications.changed() => {
                    let notification = self.notifications.borrow_and_update().clone();
                    let heard = notification.map(|notification| combination.notify(&notification));
                    for (target, notification) in heard.into_iter().flatten() {
                        if let Some(member) = members.get(&target) {
                            member.send_replace(Some(notification));
                        }
                    }
                }
                () = sleep_until(order_at) => {
                    order_at = None;
                    if let Some(order) = combination.next(Timestamp::now()) {
                        self.orders.send_replace(Some(order));
                    }
                }
            }
        }
    }
}

/// Hands a target's orders on to the notifier that it shares, until the target ends.
pub async fn take_part(
    target: TargetName,
    mut orders: watch::Receiver<Option<Order>>,
    notifications: watch::Sender<Option<Notification>>,
    shared: mpsc::Sender<Message>,
) {
    // The shared notifier has ended where it cannot be told; the process is about to.
    let _ = shared.send(Message::Joined(target.clone(), notifications)).await;
    loop {
        let order = orders.borrow_and_update().clone();
        if let Some(order) = order {
            let _ = shared.send(Message::Ordered(target.clone(), order)).await;
        }
        if orders.changed().await.is_err() {
            break;
        }
    }
    let _ = shared.send(Message::Left(target)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> TargetName {
        text.parse().expect("a name")
    }

    fn incarnation(number: u8) -> Incarnation {
        Incarnation {
            container: format!("{number:012x}").parse().expect("an ID"),
            started_at: Timestamp::UNIX_EPOCH,
        }
    }

    fn order(generation: u64, taken: &[u8], was_complete: bool) -> Order {
        let taken = taken.iter().map(|number| incarnation(*number)).collect();
        Order { generation: Generation(generation), taken, was_complete }
    }

    fn combined(orders: [(TargetName, Order); 2]) -> Combination {
        Combination { orders: orders.into(), last: None }
    }

    fn next(combination: &mut Combination) -> Option<Order> {
        combination.next(Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn what_several_targets_order_is_one_order_and_its_ack_is_everybodys() {
        let mut combination =
            combined([(name("a"), order(5, &[], false)), (name("b"), order(7, &[], false))]);
        let first = next(&mut combination).expect("there is news");
        assert_eq!((first.taken.len(), first.was_complete), (0, false));
        assert_eq!(next(&mut combination), None, "it is ordered once");
        let receivers = BTreeSet::from([incarnation(1)]);
        let taken = Notification { generation: first.generation, is_complete: true, receivers };
        let heard = combination.notify(&taken);
        let generations: Vec<_> =
            heard.iter().map(|(target, heard)| (target.as_str(), heard.generation.0)).collect();
        assert_eq!(generations, [("a", 5), ("b", 7)]);
        // One changes again: everybody is told, and only that change is news.
        combination.orders.insert(name("a"), order(6, &[], false));
        let second = next(&mut combination).expect("there is news");
        assert!(second.generation > first.generation && second.taken.is_empty() && !second.was_complete);
        assert_eq!(combination.notify(&taken), [], "an ack of what is no more");
    }

    #[test]
    fn a_change_that_comes_after_the_order_is_not_covered_by_its_ack() {
        let mut combination =
            combined([(name("a"), order(5, &[], false)), (name("b"), order(7, &[], false))]);
        let first = next(&mut combination).expect("there is news");
        combination.orders.insert(name("b"), order(8, &[], false));
        let taken =
            Notification { generation: first.generation, is_complete: true, receivers: BTreeSet::new() };
        let heard: Vec<_> = combination.notify(&taken).into_iter().map(|(target, _)| target).collect();
        assert_eq!(heard, [name("a")]);
        assert!(next(&mut combination).is_some());
    }

    #[test]
    fn what_all_targets_know_to_be_taken_is_not_notified_again_after_a_restart() {
        let mut combination =
            combined([(name("a"), order(5, &[1, 2], true)), (name("b"), order(7, &[2, 3], true))]);
        assert_eq!(
            next(&mut combination).map(|order| (order.taken, order.was_complete)),
            Some((BTreeSet::from([incarnation(2)]), true))
        );
        combination.leave(&name("a"));
        assert_eq!(next(&mut combination), None, "one that has gone is no news");
    }

    #[test]
    fn a_target_that_comes_back_hears_of_what_was_taken_while_it_was_away() {
        let mut combination =
            combined([(name("a"), order(5, &[], false)), (name("b"), order(7, &[], false))]);
        let first = next(&mut combination).expect("there is news");
        combination.leave(&name("a"));
        let receivers = BTreeSet::from([incarnation(1)]);
        let taken = Notification { generation: first.generation, is_complete: true, receivers };
        assert_eq!(combination.notify(&taken).len(), 1);
        combination.orders.insert(name("a"), order(5, &[], false));
        let second = next(&mut combination).expect("nobody has told it");
        let heard = combination.notify(&Notification { generation: second.generation, ..taken });
        assert_eq!(heard.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_is_busy_holds_up_no_other_one() {
        let (messages, said) = mpsc::channel(16);
        let (orders, mut ordered) = watch::channel(None);
        let (notify, notifications) = watch::channel(None);
        let stop = CancellationToken::new();
        let shared = SharedNotifier { messages: said, orders, notifications, stop: stop.clone() };
        let running = tokio::spawn(shared.run());
        // `a` reads nothing.
        let (a, _unread) = watch::channel(None);
        let (b, mut heard) = watch::channel(None);
        for message in [Message::Joined(name("a"), a), Message::Joined(name("b"), b)] {
            messages.send(message).await.expect("it runs");
        }
        messages.send(Message::Ordered(name("a"), order(1, &[], false))).await.expect("it runs");
        for generation in 2..20 {
            let message = Message::Ordered(name("b"), order(generation, &[], false));
            messages.send(message).await.expect("it runs");
            ordered.changed().await.expect("it runs");
            let generation = ordered.borrow_and_update().as_ref().map(|order: &Order| order.generation);
            let generation = generation.expect("an order");
            let notification = Notification { generation, is_complete: true, receivers: BTreeSet::new() };
            notify.send_replace(Some(notification));
            heard.changed().await.expect("it runs");
            heard.mark_unchanged();
        }
        stop.cancel();
        running.await.expect("no panic");
    }
}
