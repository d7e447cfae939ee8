/* Earlier occurrences of the last tokens, in linear time: the Z function of the text read backwards.
 *
 * Source: Gusfield 1997, "Algorithms on strings, trees, and sequences", section 1.4.
 */
#include "sample.h"

void llmos_repeats(const int32_t *tokens, int32_t n, int32_t limit, int32_t *lengths)
{
    if (n < 1)
        return;
    /* Backwards: at distance j from the end, the same tokens as at distance 0 on, lengths[n - j] of them. */
    const int32_t *last = tokens + n - 1;
    int32_t left = 0, right = 0; /* what begins at `left` is known to match up to `right` */
    lengths[0] = 0;
    for (int32_t j = 1; j < n; j++) {
        int32_t k = 0;
        if (j < right) {
            int32_t known = lengths[n - (j - left)];
            k = j - left == 0 || known > right - j ? right - j : known;
        }
        while (k < limit && j + k < n && last[-k] == last[-(j + k)])
            k++;
        lengths[n - j] = k < limit ? k : limit;
        if (j + k > right) {
            left = j;
            right = j + k;
        }
    }
}
