"""What a page claims is held by a test that could fail, above all where it says every or any."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOTAL = re.compile(r"\b(every|any|exact)", re.IGNORECASE)
CLAIMS = {
    "README.md": {
        "any tree of means": "test_any_tree_of_means",
        "any number of terms": "test_any_number_of_terms",
        "exact, with masks": "test_float32_is_exact_and_never_reads_what_has_no_weight",
        "and second derivatives": "test_second_derivatives_equal_those_of_the_dense_loss",
        "onto any devices": "test_onto_any_mesh_and_back",
        "masks, ragged batches, microbatches": "test_any_weights",
        "devices give the value and gradient": "test_ours_is_the_truth_in_the_table",
        "under `jit`, `vmap` and `pmap`": "test_devices_run_side_by_side",
        "exact for any number of terms": "test_terms_of_different_weights",
        "need not divide the batch": "test_microbatches_from_one_to_the_number_of_rows",
        "one number per example, strict on shapes": "test_law",
        "finite at logits of ±10 000": "test_survives_large_predictions",
        "out of range is NaN in its row": "test_out_of_range_is_nan_and_never_another_class",
        "warmup lengths can be swept": "test_warmup_lengths_may_be_swept",
        "without the table in between": "test_nothing_as_large_as_the_matrix_is_ever_made",
        "a value and a proximal operator": "test_prox_minimizes",
        "all but two under any diagonal metric": "test_adam_takes_all_regularizers_but_two",
        "the ragged last batch included": "test_the_ragged_last_batch_is_a_smaller_step",
        "the newest good step restored": "test_to_the_newest_step_that_verifies",
        "a killed run resumes with the same bits": "test_quick_form",
        "to the bits of a run that nobody touched": (
            "test_a_killed_run_ends_in_the_bits_of_one_that_nobody_touched"
        ),
        "laws that our own losses, regularizers, schedules": "test_transform",
        "exactly zero under Adam": "test_settles_on_the_lasso_with_exact_zeros",
        "those of scikit-learn": "test_coefficients_and_support_are_those_of_scikit_learn",
        "each be a tracer or a schedule": "test_transform",
        "fit in a quarter of the memory": "test_two_bytes_a_parameter_for_both_moments",
        "bfloat16 parameters that follow float32": "test_the_final_loss_is_that_of_float32",
        "exact accumulation of weighted microbatches": "test_any_weights_and_windows",
        "transformations that take one gradient of the batch": "test_it_runs",
        "Its schedules work here": "test_schedules_of_optax_are_rates_and_parts_here",
        "but [eleven, such as": "test_what_the_page_excepts_does_not_run",
        "as one program, compiled once, into one table": (
            "test_their_number_does_not_grow_with_the_trials"
        ),
        "what has run survives a kill": "test_the_same_table",
    },
    "docs/losses.md": {
        "Any other label out of range": "test_out_of_range_is_nan_and_never_another_class",
        "often exactly 0": "test_equals_its_reference",
    },
    "docs/fused.md": {
        "what they return is exact": "test_equals_the_dense_loss_in_float64",
        "what never exists": "test_nothing_as_large_as_the_matrix_is_ever_made",
        "A name in both rooms is one objective": "test_the_mean_is_that_of_the_losses",
        "masks and refusals are the same": "test_the_rooms_refuse_alike_and_take_alike",
        "Any other label out of range makes the value NaN": "test_labels_out_of_range",
        "one of weight 0 is still a negative": "test_the_mean_is_that_of_the_losses",
        "takes one exact step of the loss": "test_pieces_give_the_gradient_of_the_whole",
        "They need not divide anything": "test_equals_the_dense_loss_in_float64",
        "is added up once": (
            "test_the_kernel_gradient_is_reduced_once_and_all_devices_share_the_work"
        ),
        "each device makes its part": (
            "test_a_vocabulary_is_never_gathered_where_tokens_are_whole"
        ),
        "They gather embeddings, never the table": "test_no_device_holds_all_pairs",
        "A loss near 0 keeps its digits": "test_a_loss_near_zero_keeps_its_digits",
    },
    "docs/objectives.md": {
        "exact for any weights": "test_of_any_weights_and_curved_terms",
        "so the sum must be measured": (
            "test_the_best_by_value_and_penalty_is_the_optimum_of_scikit_learn"
        ),
    },
    "docs/why.md": {
        "Every loss here refuses": "test_law",
        "#exact-zeros": "test_settles_on_the_lasso_with_exact_zeros",
        "take the steps of the whole batch": (
            "test_microbatches_take_the_steps_of_the_whole_batch_and_their_means_do_not"
        ),
        "does not depend on the number of microbatches": (
            "test_pieces_and_devices_do_not_change_the_gradient_of_a_router"
        ),
    },
    "docs/plots.md": {
        "No setting of matplotlib is changed": "test_a_figure_of_pyplot_is_made_and_nothing_set",
        "told apart in grey": "test_neighbors_differ_in_grey_and_no_two_styles_are_the_same",
        "axis is logarithmic where": "test_the_scale_is_logarithmic_where_it_helps",
        "Epochs count from 1": "test_lines_are_the_columns_over_epochs_from_1",
        "which others have is refused": "test_runs_of_unequal_columns_are_refused_by_name",
        "a rate that diverges does not flatten": (
            "test_the_picture_ends_at_ten_times_what_the_lowest_rate_came_to"
        ),
        "another one becomes the cheapest": "test_thresholds_are_where_the_cheapest_changes",
    },
    "docs/schedules.md": {
        "Every level and every length": "test_every_argument_may_be_traced",
    },
    "docs/regularizers.md": {
        "without a gradient": "test_the_best_by_value_and_penalty_is_the_optimum_of_scikit_learn",
        "makes coordinates exactly zero": "test_l1_makes_exact_zeros_and_l2_makes_none",
        "acts on each leaf by itself": "test_each_leaf_is_by_itself",
        "weights that are exactly zero": "test_exact_zeros_survive_apply_updates",
        "Its value is 0 everywhere": "test_equals_its_reference",
        "goes with everything": "test_squares_go_with_everything",
        "every pair in the sum must be one of these": "test_five_pairs_are_known",
        "Every other sum raises": "test_every_other_pair_is_refused_when_built",
        "Every prox is compared with a convex solver": "test_prox_minimizes",
        "Rules may hold any regularizer": "test_every_kind_of_member_has_its_leaves",
    },
    "docs/transforms.md": {
        "Every number may be a number": "test_a_row_has_all_of_its_numbers",
        "is an exact proximal step": "test_the_gain_of_a_steady_gradient_is_the_metric",
        "Exact zeros": "test_settles_on_the_lasso_with_exact_zeros",
        "and the rule rests where it did": "test_it_rests_where_the_rule_rests_with_exact_zeros",
        "leads to the minimum of loss plus penalty": "test_settles_on_the_lasso_with_exact_zeros",
        "zeros are exact": "test_exact_zeros_survive_apply_updates",
        "fewer than 4096 elements": "test_small_whole_masked_and_missing_leaves_stay",
        "lands exactly on the rounded value": "test_lands_on_the_rounded_value_bit_by_bit",
        "exact for any number of terms": "test_terms_of_different_weights",
        "at any depth of it": "test_it_is_read_wherever_it_is_held",
        "the mean of float64 to the last digit": (
            "test_equals_the_mean_of_the_iterates_in_float64"
        ),
        "stands still hundreds of last digits away": "test_one_part_in_float32_does_not",
        "Any update is a step": "test_an_update_of_zeros_is_a_point_too",
        "An average of exact zeros": "test_an_average_of_exact_zeros_is_not_sparse",
        "exact for one weighted term": "test_any_weights_and_windows",
        "exact zeros beside scikit-learn": "test_quick_form",
    },
    "docs/training.md": {
        "a smaller step of its own": "test_the_ragged_last_batch_is_a_smaller_step",
        "Each epoch visits all rows": "test_every_row_is_visited_once_an_epoch",
        "gradients reach hyperparameters": "test_gradients_reach_hyperparameters_through_the_run",
        "small batches are far ahead": "test_quick_form",
        "a perceptron on 442 patients": "test_quick_form",
        "makes a sweep": "test_vmap_gives_the_runs_one_by_one",
        "batch by batch and exactly": "test_any_batches_give_the_whole",
        "what judges the best parameters is the sum": (
            "test_the_best_by_value_and_penalty_is_the_optimum_of_scikit_learn"
        ),
        "does not change a bit": "test_any_cut_gives_the_same_bits",
        "names any column and its direction": "test_any_column_judges_in_either_direction",
        "if there are any: value and gradient are measured": (
            "test_rows_that_spoil_value_or_gradient_are_named"
        ),
        "both of the last step before the row": (
            "test_norms_are_those_of_the_last_step_of_a_row_wherever_rows_end"
        ),
        "stops where the first of the two does": "test_a_fit_stops_where_a_plain_loop_stops",
        "The parameters are the last finite ones": "test_a_fit_ends_before_the_step_that_breaks",
        "that alone is NaN ends nothing": (
            "test_a_nan_of_the_validation_value_alone_does_not_stop"
        ),
        "The runs are those of `fit`": "test_values_are_those_of_fit",
        "and such a rate is never picked": (
            "test_the_lowest_mean_over_seeds_is_picked_and_never_one_that_broke"
        ),
        "nothing is traced and nothing compiled": (
            "test_other_numbers_epochs_and_data_neither_trace_nor_compile"
        ),
        "their own share of every batch": (
            "test_an_epoch_is_all_rows_and_a_batch_has_its_share_of_each_part"
        ),
        "are measured at the parameters that it gives": (
            "test_rows_measure_the_average_of_the_iterates"
        ),
        "Schedule-free rules are judged by": "test_schedule_free_is_judged_at_its_average",
        "The bits of the run are the same with it and without": (
            "test_on_epoch_sees_each_row_once_and_in_order"
        ),
        "ends in the bits of a run that nobody interrupted": (
            "test_any_interruption_ends_in_the_same_bits"
        ),
    },
    "docs/models.md": {
        "a model of any library trains": "test_a_model_trains_as_in_a_plain_loop_of_its_library",
        "with a rule that moves nothing": (
            "test_a_rule_that_moves_nothing_measures_statistics_at_other_parameters"
        ),
    },
    "docs/own_loop.md": {
        "Means are pooled over the devices": "test_ours_is_the_truth_in_the_table",
    },
    "docs/recipes.md": {
        "like any term": "test_microbatches_do_not_change_the_columns",
        "at every step": "test_the_two_conventions_of_momentum_take_the_same_steps",
        "offers to every optimizer": "test_an_optimizer_is_offered_value_grad_and_value_fn",
        "follows the precision of its inputs": "test_a_run_in_float64_is_the_plain_loop",
    },
    "docs/testing.md": {
        "offers the laws that every loss": "test_laws",
        "any function of trees of arrays": "test_every_input_and_leaf_is_moved",
    },
    "docs/devices.md": {
        "masks may leave one of them empty": "test_on_a_mesh",
        "a second call compiles nothing": (
            "test_a_second_call_compiles_nothing_and_the_state_is_donated"
        ),
        "never exists on one": "test_functions_that_make_the_start",
        "whose path ends its own": "test_state_lies_as_its_parameter_does",
        "to the bit": "test_20_steps_are_those_of_data_parallel_to_the_bit",
        "At rest FSDP holds 1/n": "test_each_device_holds_its_part",
        "more devices than there are.": "test_64_devices_of_which_there_are_8",
        "compute alike and count once": "test_rows_that_devices_do_not_divide",
        "which stay where they are": "test_each_device_computes_its_part_of_the_products",
        "which are real": "test_value_and_gradient_are_those_without_copies",
        "once for each microbatch": "test_data_parallel_sums_each_gradient",
        "scattered as they are added up": "test_shard_map_scatters_each_leaf_once",
        "are refused by name": "test_a_step_refuses_on_slices_and_says_what_to_do",
        "The first that matches wins": "test_come_first_and_the_first_wins",
        "with the numbers of one device": "test_equals_one_device",
        "holds one at a time": "test_layers_gathered_in_the_scan",
        "say what to write": "test_at_once",
        "is both": "test_are_named_or_said",
        "the whole batch, wherever it lies": ("test_batch_norm_over_all_devices_is_that_of_one"),
        "dropout masks are the same": ("test_dropout_states_and_numbers_are_those_of_one_device"),
        "moves in three lines": "test_equals_one_device_and_numpy_by_hand",
        "on another mesh": "test_onto_any_mesh_and_back",
        "takes the mesh, and with it": "test_is_the_plain_loop",
        "a device has 1/n of": "test_what_devices_share_lies_in_parts",
        "and they count once": "test_all_at_once",
        "takes its share of each part": "test_a_share_validates",
        "on four devices, or on one": "test_goes_on_where_there_are_other_devices",
        "than that of the checkpoint is refused": "test_other_shards_are_refused",
        "that of one device with the same": "test_noise_and_statistics_are_those_of_one_device",
        "is refused before the first step": "test_what_differs_or_does_not_fit",
        "no rows in the batches that follow": "test_parts_are_one_batch",
        "ends all of them": "test_signals",
        "go on from the checkpoint": "test_all_go_on",
        "and one process of two": "test_two_processes_take_the_run_of_one_to_the_bit",
        "of one process, and of two": "test_four_devices_of_one_process_or_of_two",
        "and gone on with on another": "test_a_run_of_two_processes_goes_on_with_four_devices",
    },
    "docs/processes.md": {
        "Otherwise every process raises": "test_agree_and_refuse_alike",
        "becomes one sentence on stderr": "test_what_jax_says_of_lost_processes",
        "prints its traceback and a sentence": "test_an_error_of_one_ends_both",
        "Both end at once": "test_a_killed_one_makes_the_other_leave_with_a_sentence",
        "are aborted": "test_without_the_first_the_other_leaves_or_is_aborted",
        "is found by its heartbeat": "test_a_stopped_one_is_found_by_its_heartbeat",
        "Any other exception": "test_what_is_an_error_of_its_own",
        "so `initialize` refuses that": "test_refuses_recoverability",
    },
    "docs/long_runs.md": {
        "the bits are those of arrays": "test_however_stacks_are_cut",
        "so it is refused for": "test_before_it_begins",
        "where a generator ends before": "test_an_iterator_that_runs_out",
        "are refused": "test_before_it_begins",
        "the next stack is read while the device works": "test_reading_and_training_overlap",
        "write its next batch into the same memory": "test_memory_that_the_loader_writes_again",
        "more than two numbers are warned of": "test_many_shapes_are_said_once",
        "pooled as rows in memory are": "test_is_arrays_but_for_rounding",
        "Each batch is then compared with it": "test_a_batch_unlike_the_first",
        "goes on where it ended": "test_any_interruption_ends_in_the_same_bits",
        "A run that had ended by its stop rule": "test_a_run_that_had_stopped_stays_stopped",
        "looks at the whole history again": (
            "test_with_another_stop_rule_it_goes_on_as_if_it_had_had_that"
        ),
        "data of another shape or dtype": "test_another_run_is_refused_and_nothing_overwritten",
        "a `kill -9` included": ("test_a_killed_run_ends_in_the_bits_of_one_that_nobody_touched"),
        "is a warning, and the run goes on": (
            "test_a_save_that_fails_is_a_warning_and_the_next_is_tried"
        ),
        "`start` is not looked at": "test_a_directory_that_holds_the_run_is_nearer_than_start",
        "it is asked where it is": "test_cut_at_every_step",
        "the state may hold numbers": "test_there_and_back",
        "A second Ctrl-C raises": "test_a_second_ctrl_c_raises_at_once",
        "is sent on when the run is saved": ("test_sigterm_saves_and_goes_to_its_handler_once"),
        "ends it before a limit": "test_a_run_ends_before_its_limit",
        "noted in the main thread alone": "test_other_threads_touch_no_handler",
        "goes on with as many": "test_go_on_in_as_many_processes_alone",
        "ends all": "test_signals",
    },
    "docs/sweeps.md": {
        "tries it on digits in one sweep": "test_quick_form",
        "the same bits on any worker": "test_workers_give_the_table_of_a_sweep_here",
        "A chunk that ended every worker it met": "test_a_chunk_that_kills_is_named",
        "the root of the factor is left": (
            "test_decay_leaves_the_root_of_a_factor_and_behind_it_nothing"
        ),
        "what any trial used counts as tried": "test_what_was_used_before_was_tried",
        "does not depend on which other trials": "test_an_order_of_trials_is_that_of_the_rows",
        "the first n of 2n trials are the same": "test_the_first_of_more_trials_are_the_same",
        "a part or a permutation carries its ids": "test_a_part_or_a_permutation_carries_its_ids",
        "Any tree of arrays with one leading axis": "test_trees_of_arrays_get_ids",
        "Everything that is a number is swept": ("test_a_trial_is_a_run_whatever_number_differs"),
        "anything hashable": "test_options_are_one_program_each_in_one_table",
        "is never passed to its run": "test_what_is_missing_is_not_passed",
        "the luckiest seed does not win": ("test_with_repetitions_the_luckiest_key_does_not_win"),
        "the second sweep compiles nothing": "test_a_second_sweep_traces_nothing",
        "Any cut gives the same bits": "test_any_cut_gives_the_same_bits",
        "checks before the first step are those of": "test_data_are_tried_before_anything_long",
        "takes more than twice as long": "test_little_work_is_not_worth_a_compilation",
        "the faster one is kept": "test_the_faster_one_is_taken",
        "takes as many trials as fit": "test_chunk_is_solved_from_what_programs_take",
        "the message says how much it needs": "test_less_than_one_trial_needs",
        "A trial alone gives the bits": "test_a_trial_alone_is_the_trial_in_the_sweep",
        "its table is the same to the bit": "test_the_same_table",
        "returns the table so far": "test_control_c_returns_what_has_come",
        "Who goes on has the bits": "test_beside_others",
        "One program serves all": "test_one_program",
        "of equals the lower ids": "test_of_equals_the_lower_ids",
        "each of the worst fifth": "test_it_is_what_numpy_says",
        "their mean ranks": "test_repeats_rank_by_their_mean",
        "goes no further": "test_nobody_goes_on_who_is_not_finite",
        "An automatic chunk is so narrow": "test_an_automatic_chunk_is_narrow",
        "Rows are those of the same trials drawn": "test_are_those_of_trials_drawn_beforehand",
        "one program serves all chunks": "test_one_serves_all_chunks",
        "settled once for each option": "test_the_form_is_settled_once_for_a_share_of_a_chunk",
        "proposals are saved before they run": "test_from_what_was_on_the_disk_when_a_row_came",
        "all rows that ran are told in one call": "test_after_ctrl_c",
        "begins no further chunk": "test_time_is_up_between_two_chunks",
        "Only the new ones run": "test_more_trials_and_another_order",
        "is refused**, and nothing is overwritten": "test_another_sweep",
        "The devices do not speak to each other": "test_devices_do_not_speak",
        "the table is that of one device": "test_sharded_is_unsharded",
        "A trial that diverges ranks last": "test_what_diverged_is_last_and_marked",
        "that ends at an end of the space says so": (
            "test_at_the_ends_of_what_was_tried_it_says_so"
        ),
        "swept like any; at 0 the leaf is frozen": "test_a_factor_of_zero_leaves_all_bits",
    },
    "docs/checkpoints.md": {
        "what every file and every leaf must be": "test_what_it_holds",
        "before Orbax opens anything": "test_damaged_files",
        "Every 32-bit word": "test_of_every_dtype",
        "There is no pickle anywhere": "test_none_is_called",
        "comes back as it was": "test_a_note_comes_back_as_it_was",
        "notes without the number do not count": "test_a_damaged_manifest_is_never_the_best",
        "raises and moves nothing": "test_a_damaged_one_is_said_and_nothing_moves",
        "other arrays are not read": "test_no_other_array_is_read",
        "An outline serves as": "test_an_outline_is_like",
        "the states of every transformation": "test_every_kind_of_leaf",
        "read again from its files": "test_what_is_not_what_was_in_memory_does_not_land",
    },
}


@pytest.mark.parametrize(("page", "claim"), [(page, x) for page in CLAIMS for x in CLAIMS[page]])
def test_a_claim_is_held_by_a_test(page, claim):
    assert any(claim in sentence for sentence in _sentences(ROOT / page, code=True))
    assert CLAIMS[page][claim] in _tests()


@pytest.mark.parametrize("page", CLAIMS)
def test_a_sentence_that_leaves_nothing_out_is_held_by_a_test(page):
    for sentence in filter(TOTAL.search, _sentences(ROOT / page)):
        held = any(words in sentence for words in CLAIMS[page])
        assert held, f"{page} claims without a test: {sentence}"


@cache
def _tests():
    paths = ROOT.glob("tests/**/*.py")
    trees = [ast.walk(ast.parse(path.read_text())) for path in paths]
    return {x.name for tree in trees for x in tree if isinstance(x, ast.FunctionDef)}


def _sentences(page, *, code=False):
    """Without code, in whose font words are names."""
    named = r"^```.*?^```" if code else r"^```.*?^```|`[^`]*`"
    prose = re.sub(named, "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n|\n- |\n\| ", prose):
        yield from re.split(r"(?<=[.!?])\s", " ".join(paragraph.split()))
