"""Which tests the gate runs on which day: all fast ones, most slow ones, and a share of the others, which the date chooses."""

from collections import Counter
from collections.abc import Sequence
from zlib import crc32

import pytest

SHARES = 40
"""Of the exhaustive tests, the gate runs one of so many."""
TURNS = 6
"""Of the slow tests in `IN_TURN`, the gate runs one of so many."""
THINNED = {
    "test_an_example_is_for_gpus_of_80_gb_and_every_key_in_it_has_an_effect": 12,
    "test_an_epoch_costs": 12,
    "test_evaluation_draws_the_stock_pipelines_pictures": 6,
    "test_the_log_prob_of_a_replay_is_that_of_the_rollout": 8,
    "test_the_gradient_of_full_training_misses_the_dead_ends_and_nothing_else": 6,
    "test_a_saved_lora_in_a_stock_pipeline_draws_what_a_run_evaluates": 6,
    "test_a_row_encoded_twice_and_a_row_from_the_cache_have_the_same_velocity": 6,
    "test_rows_of_other_pictures_and_prompts_replay_exactly_in_any_order": 6,
    "test_an_ode_rollout_ends_where_the_stock_loop_ends": 6,
    "test_a_saved_lora_comes_back_into_a_fresh_policy": 2,
    "test_the_old_policy_is_the_one_that_sampled_to_the_bit": 8,
    "test_groups_of_no_variance_are_left_out_and_the_update_is_the_same": 6,
    "test_pictures_are_those_of_the_weights_that_roll_out": 8,
    "test_a_checkpoint_draws_what_its_pipeline_draws": 2,
    "test_samples_depend_on_all_that_is_asked_for": 2,
    "test_damaged_files_are_taken_or_refused_in_a_line": 3,
    "test_static_parts_are_what_a_run_holds": 6,
    "test_training_sees_what_sampling_saw_and_the_update_takes_effect": 3,
    "test_a_step_and_a_velocity_cost_one_forward_a_guidance_branch": 5,
    "test_the_size_of_a_micro_batch_does_not_change_the_update": 3,
    "test_before_any_update_the_policy_is_the_reference_of_start_alone": 6,
    "test_a_model_that_never_sampled_replays_exactly": 5,
    "test_a_run_learns_and_is_on_policy": 3,
    "test_activations_are_near_those_of_a_traced_forward_and_backward": 2,
    "test_the_gradient_reaches_every_lora_parameter": 3,
    "test_an_epoch_costs_its_samples_and_its_points_and_nothing_else": 3,
    "test_a_picture_is_refused_by_its_size_alone_or_drawn": 6,
    "test_latents_stored_in_fewer_bits_replay_exactly": 6,
    "test_an_old_policy_moves_after_an_epoch_by_the_optimiser_steps_taken": 3,
    "test_every_script_of_the_pages_runs": 3,
    "test_what_an_epoch_logs": 3,
    "test_a_size_that_cannot_be_is_refused_and_the_nearest_one_is_drawn": 3,
    "test_a_published_architecture_has_the_default_targets_and_the_dead_ends": 5,
    "test_a_hook_that_raises_is_one_line_and_a_trace_where_that_is_asked_for": 3,
    "test_conditions_are_encoded_once_a_micro_batch": 3,
    "test_training_without_guidance_costs_one_forward": 5,
    "test_a_pipeline_whose_last_step_returns_the_state_of_media_decodes_their_latents": 3,
    "test_a_gradient_reaches_every_linear_layer": 3,
    "test_an_answer_that_is_none_is_asked_for_again_then_masked_or_the_run_stops": 2,
    "test_the_replay_of_a_pipeline_is_its_rollout": 3,
    "test_every_example_is_checked_without_network_or_gpu": 3,
    "test_an_engine_shares_out_what_it_says": 3,
    "test_the_reference_is_the_weights_that_it_says": 3,
    "test_operations_are_those_that_torch_counts": 3,
    "test_a_refused_start_changes_no_byte": 3,
    "test_scores_do_not_depend_on_the_batch_its_order_or_its_size": 2,
    "test_a_wrong_kernel_is_refused": 3,
    "test_a_row_of_a_published_model_takes_32_megabytes_at_most": 4,
    "test_what_an_encoded_row_takes_is_estimated": 4,
    "test_a_family_draws_two_micro_batches_at_once": 4,
    "test_a_run_draws_whole_groups": 2,
    "test_gradients_are_the_same_whichever_blocks_are_computed_again": 3,
    "test_other_dynamics_replay_exactly": 3,
    "test_a_run_asks_once_whether_an_update_has_an_effect": 4,
}
"""Grids of the fast part of which it runs every n-th cell, on the next day the next ones; the others are exhaustive."""


IN_TURN = (
    "test_processes_that_have_different_things_to_do_learn_what_one_does",
    "test_a_run_that_was_stopped_goes_on_as_if_it_never_was",
    "test_a_process_that_is_killed_ends_all_and_the_run_goes_on_to_the_bit",
    "test_four_processes_on_two_machines_do_what_one_process_does",
    "test_two_machines_train_together",
    "test_restarts_that_do_not_help_come_to_an_end",
    "test_who_waits_in_vain_says_so_in_a_line",
    "test_teams_do_what_one_process_does",
    "test_files_of_the_current_folder_stand_in_for_no_module",
    "test_the_tables_of_the_hardware_page_are_what_the_script_prints",
    "test_a_disk_that_fills_up_during_a_save_leaves_the_checkpoint_before",
    "test_a_disk_that_fills_up_elsewhere_is_one_line",
    "test_the_work_of_one_process_is_waited_for_without_limit",
    "test_a_death_ends_all_and_is_told_with_what_the_process_was_doing",
    "test_out_of_memory_names_the_keys_that_need_less",
    "test_what_it_says_to_write_fits_by_the_estimate",
    "test_processes_do_what_one_does",
    "test_a_gradient_that_is_no_number_is_not_stepped",
    "test_mixed_precision_draws_the_same_pictures_and_moves_the_weights_alike",
    "test_two_processes_learn_the_same_whenever_rows_are_encoded",
    "test_two_commands_at_once_lose_no_line",
    "test_the_quick_start_trains_with_judges_on_a_server_one_of_them_groupwise",
    "test_weights_are_gathered_in_16_bits_and_once_a_rollout_where_they_stay",
    "test_the_command_ends_although_threads_of_a_reward_do_not",
    "test_the_command_does_it_with_two_processes",
    "test_a_run_killed_while_it_encodes_a_window_goes_on_to_the_same_weights",
    "test_a_file_of_ones_own_rewards_is_trained_on",
    "test_of_two_processes_the_slower_one_is_named",
    "test_in_another_number_of_processes_the_samples_are_made_anew",
    "test_a_process_that_sees_an_older_state_of_the_folder_goes_on_from_where_all_do",
    "test_a_second_ctrl_c_ends_at_once_but_for_the_checkpoint_that_is_written",
    "test_a_large_example_fits_its_gpus_and_machines",
    "test_an_example_trains_a_tiny_checkpoint_into_weights_that_diffusers_loads",
    "test_a_run_goes_on_in_another_folder",
    "test_every_metric_of_every_algorithms_run_is_in_it",
    "test_all_machines_restart_when_a_process_of_one_died",
    "test_a_team_has_the_velocity_and_the_gradient_of_one_process",
    "test_a_compiled_model_replays_its_rollouts_and_learns_what_it_would",
)
"""The dearest slow tests, most of them runs of several processes. Each comes up every few days."""


def of_other_days(items: Sequence[pytest.Item], share: str) -> list[pytest.Item]:
    """The tests that this share leaves out: the exhaustive ones but for one of `SHARES`, the slow ones in turn but for one of `TURNS`."""
    thin(items, share)
    exhaustive = [item for item in items if item.get_closest_marker("exhaustive")]
    turn = [item for item in items if name_of(item) in IN_TURN and item not in exhaustive]
    out = [item for item in exhaustive if not in_share(item.nodeid, share)]
    return out + [item for k, item in enumerate(turn) if share != "all" and (k + int(share)) % TURNS]


def name_of(item: pytest.Item) -> str:
    return item.nodeid.rpartition("::")[2].partition("[")[0]


def thin(items: Sequence[pytest.Item], share: str) -> None:
    """Marks the cells that `THINNED` leaves to the exhaustive part. Each cell is a fast one every n-th share."""
    first, seen = 0 if share == "all" else int(share), Counter[str]()
    for item in items:
        name = name_of(item)
        if name in THINNED and not any(map(item.get_closest_marker, ("exhaustive", "slow"))):
            if (first + seen[name]) % THINNED[name]:
                item.add_marker(pytest.mark.exhaustive)
            seen[name] += 1


def in_share(test: str, share: str) -> bool:
    return share == "all" or crc32(test.encode()) % SHARES == int(share) % SHARES
