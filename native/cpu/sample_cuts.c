/* Cuts in any order, and mirostat: for draws that the short ways of sample.c do not cover.
 *
 * All tokens that are not banned are candidates, with scores relative to the best one and weights e^score. A cut
 * takes candidates away or changes scores; then the best one has score 0 and weight 1 again.
 */
#include "_candidates.h"

#include "_power.h"

#include <float.h>
#include <math.h>
#include <string.h>

static const double LOG2_E = 0x1.71547652b82fep+0;

static double largest_score(const llmos_sample_memory *at)
{
    double largest = -INFINITY;
    for (int32_t i = 0; i < at->num_candidates; i++)
        largest = at->candidates[i].score > largest ? at->candidates[i].score : largest;
    return largest;
}

/* Divide scores by a temperature, and weigh anew: in blocks, whose powers the compiler makes vectors of. */
static void scale(double temperature, llmos_sample_memory *at)
{
    double powers[LLMOS_SEGMENT] = {0.0};
    for (int32_t first = 0; first < at->num_candidates; first += LLMOS_SEGMENT) {
        llmos_candidate *of = at->candidates + first;
        int32_t left = at->num_candidates - first, count = left < LLMOS_SEGMENT ? left : LLMOS_SEGMENT;
        for (int32_t i = 0; i < count; i++) {
            of[i].score = of[i].score < 0.0 ? of[i].score / temperature : 0.0;
            powers[i] = of[i].score * LOG2_E;
        }
        for (int32_t i = 0; i < LLMOS_SEGMENT; i++)
            powers[i] = power_of_two(powers[i]);
        for (int32_t i = 0; i < count; i++)
            of[i].weight = powers[i];
    }
}

/* After the best one was taken away: scores and weights are relative to the one that is best now. */
static void renew(llmos_sample_memory *at)
{
    double largest = largest_score(at);
    if (!(largest < 0.0))
        return;
    for (int32_t i = 0; i < at->num_candidates; i++)
        at->candidates[i].score = at->candidates[i].score < largest ? at->candidates[i].score - largest : 0.0;
    scale(1.0, at);
}

/* Keep the candidates with such scores, the best one among them. */
static void keep_scores(double least, llmos_sample_memory *at)
{
    int32_t count = 0;
    for (int32_t i = 0; i < at->num_candidates; i++)
        if (at->candidates[i].score >= least)
            at->candidates[count++] = at->candidates[i];
    at->num_candidates = count;
}

/* Mean of the scores by their weights: minus the entropy, but for the logarithm of the total. */
static double mean_score(const llmos_sample_memory *at)
{
    double sum = 0.0;
    for (int32_t i = 0; i < at->num_candidates; i++)
        if (at->candidates[i].weight > 0.0)
            sum += at->candidates[i].weight * at->candidates[i].score;
    return sum / llmos_candidates_weight(at);
}

/* Source: Zhu et al. 2024, arXiv:2403.14541 (temperature by entropy). */
static double dynamic_temperature(llmos_cut by, const llmos_sample_memory *at)
{
    double low = by.value > by.spread ? by.value - by.spread : 0.0, high = by.value + by.spread;
    double most = log(at->num_candidates), entropy = log(llmos_candidates_weight(at)) - mean_score(at);
    double part = most > 0.0 && entropy > 0.0 ? fmin(entropy / most, 1.0) : 0.0;
    double temperature = low + (high - low) * pow(part, by.exponent);
    return temperature > DBL_MIN ? temperature : DBL_MIN;
}

/* Source: Tang et al. 2024, arXiv:2411.07641. */
static void cut_by_sigma(double limit, llmos_sample_memory *at)
{
    double sum = 0.0, squares = 0.0;
    int32_t count = 0;
    for (int32_t i = 0; i < at->num_candidates; i++)
        if (at->candidates[i].score >= -DBL_MAX) {
            sum += at->candidates[i].score;
            count++;
        }
    double mean = sum / count;
    for (int32_t i = 0; i < at->num_candidates; i++)
        if (at->candidates[i].score >= -DBL_MAX)
            squares += (at->candidates[i].score - mean) * (at->candidates[i].score - mean);
    keep_scores(-limit * sqrt(squares / count), at);
}

/* Source: Meister et al. 2022, arXiv:2202.00666 (locally typical). Nearest to the entropy is nearest to the mean. */
static void cut_to_typical(double limit, llmos_sample_memory *at)
{
    double mean = mean_score(at), goal = limit * llmos_candidates_weight(at);
    memcpy(at->order, at->candidates, (size_t)at->num_candidates * sizeof *at->order);
    for (int32_t i = 0; i < at->num_candidates; i++)
        at->order[i].score = -fabs(at->order[i].score - mean);
    llmos_candidate last = llmos_cut_at(at->order, at->num_candidates, true, goal);
    int32_t count = 0;
    for (int32_t i = 0; i < at->num_candidates; i++) {
        llmos_candidate each = at->candidates[i];
        each.score = -fabs(each.score - mean);
        if (!llmos_is_before(&last, &each))
            at->candidates[count++] = at->candidates[i];
    }
    at->num_candidates = count;
    renew(at);
}

/* Source: p-e-w 2024, "Exclude Top Choices". */
static void cut_top_choices(double threshold, llmos_sample_memory *at)
{
    double least = threshold * llmos_candidates_weight(at);
    const llmos_candidate *stays = NULL;
    int32_t num_over = 0, count = 0;
    for (int32_t i = 0; i < at->num_candidates; i++) {
        const llmos_candidate *each = at->candidates + i;
        if (each->weight >= least) {
            num_over++;
            stays = stays == NULL || llmos_is_before(stays, each) ? each : stays;
        }
    }
    if (num_over < 2)
        return;
    int32_t id = stays->id;
    for (int32_t i = 0; i < at->num_candidates; i++)
        if (at->candidates[i].weight < least || at->candidates[i].id == id)
            at->candidates[count++] = at->candidates[i];
    at->num_candidates = count;
    renew(at);
}

static void cut(llmos_cut by, llmos_sample_memory *at)
{
    switch (by.kind) {
    case LLMOS_TEMPERATURE:
        scale(by.value, at);
        break;
    case LLMOS_DYNAMIC_TEMPERATURE:
        scale(dynamic_temperature(by, at), at);
        break;
    case LLMOS_TOP_N_SIGMA:
        cut_by_sigma(by.value, at);
        break;
    case LLMOS_TOP_K:
        if (by.value < at->num_candidates)
            llmos_keep_up_to(false, by.value, at);
        break;
    case LLMOS_TYPICAL_P:
        cut_to_typical(by.value, at);
        break;
    case LLMOS_TOP_P:
        llmos_keep_up_to(true, by.value * llmos_candidates_weight(at), at);
        break;
    case LLMOS_MIN_P: {
        int32_t count = 0;
        for (int32_t i = 0; i < at->num_candidates; i++)
            if (at->candidates[i].weight >= by.value)
                at->candidates[count++] = at->candidates[i];
        at->num_candidates = count;
        break;
    }
    case LLMOS_XTC:
        cut_top_choices(by.value, at);
        break;
    }
}

/* How many of the best to keep for a surprise of mu bits, by how fast probabilities fall among the best hundred. */
static double count_for_surprise(double mu, int32_t vocab_size, llmos_sample_memory *at)
{
    enum { MOST = 100 };
    int32_t most = at->num_candidates < MOST ? at->num_candidates : MOST;
    memcpy(at->order, at->candidates, (size_t)at->num_candidates * sizeof *at->order);
    llmos_cut_at(at->order, at->num_candidates, false, most);
    llmos_sort_few(at->order, most);
    double products = 0.0, squares = 0.0;
    for (int32_t i = 0; i < most - 1 && at->order[i + 1].weight > 0.0; i++) {
        double t = log((i + 2.0) / (i + 1.0));
        products += t * (at->order[i].score - at->order[i + 1].score);
        squares += t * t;
    }
    if (!(squares > 0.0))
        return 1.0;
    double slope = products / squares, epsilon = slope - 1.0;
    double ratio = epsilon == 0.0 ? 1.0 / log(vocab_size) : epsilon / (1.0 - pow(vocab_size, -epsilon));
    double count = pow(ratio * exp2(mu), 1.0 / slope);
    return count < vocab_size ? fmax(1.0, floor(count)) : vocab_size;
}

/* Source: Basu et al. 2021, arXiv:2007.14966, algorithms 1 and 2. */
static void cut_by_surprise(const llmos_draw *draw, int32_t vocab_size, llmos_sample_memory *at)
{
    if (draw->mirostat == 1) {
        double count = count_for_surprise(draw->mu, vocab_size, at);
        if (count < at->num_candidates)
            llmos_keep_up_to(false, count, at);
        return;
    }
    double least = log(llmos_candidates_weight(at)) - draw->mu / LOG2_E;
    if (least > 0.0)
        llmos_keep_up_to(false, 1, at); /* even the best one surprises more than it should */
    else
        keep_scores(least, at);
}

/* Log-probabilities of what is left. */
static void write_processed(double log_total, const llmos_draw *draw, llmos_choice *choice, llmos_sample_memory *at)
{
    int32_t count = 0;
    for (int32_t i = 0; i < at->num_candidates; i++) {
        if (at->candidates[i].id == choice->token)
            choice->logprob = at->candidates[i].score - log_total;
        if (at->candidates[i].weight > 0.0)
            at->order[count++] = at->candidates[i];
    }
    choice->num_top = count < draw->num_top ? count : draw->num_top;
    if (choice->num_top == 0)
        return;
    llmos_cut_at(at->order, count, false, choice->num_top);
    llmos_sort_few(at->order, choice->num_top);
    for (int32_t i = 0; i < choice->num_top; i++) {
        draw->top_ids[i] = at->order[i].id;
        draw->top_logprobs[i] = at->order[i].score - log_total;
    }
}

void llmos_draw_by_cuts(const llmos_scores *scores, double largest, const llmos_draw *draw, llmos_choice *choice,
                        llmos_sample_memory *at)
{
    llmos_collect(scores, (llmos_weighting){largest, LOG2_E}, -DBL_MAX, 0.0, at);
    for (int32_t i = 0; i < at->num_candidates; i++)
        at->candidates[i].score -= largest;
    bool is_greedy = !(draw->temperature > 0.0);
    for (int32_t i = 0; i < draw->num_cuts && !is_greedy; i++)
        cut(draw->cuts[i], at);
    if (draw->mirostat && !is_greedy)
        cut_by_surprise(draw, scores->n, at);
    double log_total = log(llmos_candidates_weight(at));
    if (is_greedy) {
        int32_t i = 0;
        while (at->candidates[i].score < 0.0)
            i++;
        choice->token = at->candidates[i].id;
    } else {
        choice->token = llmos_draw_candidate(draw->uniform, at);
    }
    choice->mu = draw->mu;
    if (draw->mirostat && !is_greedy) {
        int32_t i = 0;
        while (at->candidates[i].id != choice->token)
            i++;
        double surprise = (log_total - at->candidates[i].score) * LOG2_E;
        choice->mu = draw->mu - draw->eta * (surprise - draw->tau);
    }
    if (draw->is_processed && draw->num_top >= 0)
        write_processed(log_total, draw, choice, at);
}
