//! What the metrics of targets are called, and what they tell.

/// Describes the metrics of targets.
pub fn describe_metrics() {
    ::metrics::describe_counter!("rollcall_consumer_renders_total", "Selections rendered, by target");
    ::metrics::describe_counter!("rollcall_consumer_installs_total", "Changes applied, by target");
    ::metrics::describe_counter!(
        "rollcall_consumer_unchanged_total",
        "Selections that changed nothing, by target"
    );
    ::metrics::describe_counter!(
        "rollcall_consumer_failures_total",
        "Selections that could not be applied, by target"
    );
    ::metrics::describe_counter!(
        "rollcall_consumer_notifications_total",
        "Changes that everybody has taken, by target"
    );
    ::metrics::describe_counter!(
        "rollcall_consumer_notification_failures_total",
        "Attempts to notify that failed, by target"
    );
    ::metrics::describe_gauge!(
        "rollcall_consumer_target_state",
        "1 for the state that the target is in, 0 for the others, by target and state"
    );
    ::metrics::describe_gauge!(
        "rollcall_consumer_unmatched",
        "Whether nothing has matched the selection yet, by target"
    );
    ::metrics::describe_counter!(
        "rollcall_consumer_rollbacks_total",
        "Changes that did not work and were taken back, by target"
    );
    ::metrics::describe_gauge!("rollcall_consumer_instances", "Instances that the target has, by target");
    ::metrics::describe_gauge!(
        "rollcall_consumer_isolated_instances",
        "Instances that are left out as the target's check refuses them, by target"
    );
    ::metrics::describe_histogram!(
        "rollcall_consumer_install_duration_seconds",
        ::metrics::Unit::Seconds,
        "Time from a due change to its installation, by target"
    );
    ::metrics::describe_histogram!(
        "rollcall_start_to_ack_seconds",
        ::metrics::Unit::Seconds,
        "Time from a container's start to the ack of the change that it caused, or to the program having it, by target"
    );
}
