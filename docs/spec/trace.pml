/* Are these decisions, taken by real nodes, runs of agreement.pml? For `spin -T`.
 *
 * rows.inc (written by tests/spec/rows.py) gives BALLOTS, ROWS and row[]: what the members of a view did, in the order
 * in which they did it, one window of rows for each decree. A window is decree 2; view 1 is the one that decides, and
 * view 0 stands for "not yet installed". Every row has to be a transition that the model allows; the first one that is
 * not stops it, with the number of the row and what forbids it. Step numbers are relative.
 */

#define TRACE
#define PEERS    8
#define FOUNDERS 5
#define VIEWS    2
#define STEPS    1
#define CRASHES  8

#include "rows.inc"
#include "agreement.pml"

#define WINDOW  0 /* members, first step, abort of the base view */
#define BASE    1 /* who installs the base view */
#define PROMISE 2 /* who, ballot, kind, finished, opened, grounded */
#define LATE    3 /* the same; its proposer did not wait for it: so it only forbids things to its giver */
#define PROPOSE 4 /* who, ballot, gone, members, first step, abort, value's number */
#define ACCEPT  5 /* who, ballot, value's number */
#define INSTALL 6 /* who, value's number, or 0 for a later view */
#define DIE     7
#define OPEN    8 /* a step */
#define FINISH  9

#define COLUMNS  8
#define FIELD(k) row[at * COLUMNS + (k)]

hidden int at;
hidden short ballot, number, fields[COLUMNS];
short numbers[SLOTS]; /* of the value that was made in this ballot */

#define MUST(what) \
	if \
	:: what -> skip \
	:: else -> printf("refused: %d\n", at); assert(what) \
	fi

inline new_window() {
	dead = 0; d = 0;
	do
	:: d < PEERS -> view[d] = 0; promised[d] = 0; accepted[d] = 0; held[d] = FREE; d++
	:: else -> break
	od;
	d = 0;
	do
	:: d < SLOTS ->
		kind[d] = 0; reporters[d] = 0; highest[d] = 0; value[d] = 0; gone[d] = 0; voters[d] = 0; numbers[d] = 0; d++
	:: else -> break
	od;
	chosen[1] = 1; chosen[2] = 0; members[0] = me; members[1] = me; first[1] = ballot; aborts[1] = FIELD(3)
}

inline stand() {
	finished[me] = FIELD(4); opened[me] = FIELD(5); entry[me] = (FIELD(6) -> 1 : FIELD(4) + 2)
}

inline replay_proposal() {
	MUST(CAN_PROPOSE(ballot));
	g = FIELD(3); number = FIELD(7);
	MUST(WITHIN(g, dead & members[1]));
	read_words(ballot);
	MUST(go);
	if
	:: h -> value[AT(2, ballot)] = value[AT(2, h)]
	:: else ->
		x = (reporters[AT(2, ballot)] & ~g) ^ FIELD(4);
		number = kind[AT(2, ballot)];
		MUST(number == FROZEN || CAN_PLAN(ballot));
		make_value(ballot, number);
		MUST(go);
		number = FIELD(7);
		numbers[AT(2, ballot)] = number
	fi;
	h = AT(2, value[AT(2, ballot)]);
	MUST(numbers[h] == number);
	MUST(new_members[h] == FIELD(4));
	MUST(new_first[h] == FIELD(5));
	MUST(new_abort[h] == FIELD(6));
	close_ballot(ballot)
}

inline replay() {
	if
	:: FIELD(0) == WINDOW  -> new_window()
	:: FIELD(0) == BASE    -> MUST(ALIVE(me) && view[me] == 0); view[me] = 1
	:: FIELD(0) == PROMISE -> stand(); number = FIELD(3); MUST(CAN_PROMISE(ballot, number)); promise(ballot, number)
	:: FIELD(0) == LATE    ->
		number = FIELD(3);
		MUST(VOTES && promised[me] < ballot);
		promised[me] = ballot; held[me] = MAX(held[me], number)
	:: FIELD(0) == PROPOSE -> replay_proposal()
	:: FIELD(0) == ACCEPT  ->
		MUST(CAN_ACCEPT(ballot));
		MUST(numbers[AT(2, value[AT(2, ballot)])] == FIELD(3));
		accept(ballot)
	:: FIELD(0) == INSTALL ->
		MUST(CAN_INSTALL);
		MUST(!ballot || numbers[AT(2, chosen[2])] == ballot);
		install()
	:: FIELD(0) == DIE     -> MUST(ALIVE(me)); die()
	:: FIELD(0) == OPEN    -> MUST(ALIVE(me) && MAY_OPEN)
	:: FIELD(0) == FINISH  -> MUST(ALIVE(me) && MAY_FINISH)
	fi
}

active proctype recorded() {
	do
	:: at < ROWS -> me = FIELD(1); ballot = FIELD(2); replay(); at++
	:: else -> break
	od;
	printf("replayed: %d\n", at)
}
