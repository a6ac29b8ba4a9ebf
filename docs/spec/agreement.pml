/* How the members of view v agree on view v+1, for spin. README.md says what the terms mean.
 *
 * Set by -D: PEERS (3 or 4), FOUNDERS (the first so many peers are the members of view 0, the others learners),
 * VIEWS (decrees, 1 or 2), BALLOTS (per decree, at most 3; BALLOTS2 for the second one), CRASHES, STEPS (at most 2),
 * CHANGES (1: the last peer may join or leave by plan), DEMOTE (1: a member may lose its worker), RULE, CHECK (below),
 * and single weakenings of OURS: NO_NACK, NO_ACCEPTED, NO_INSTALLED, NO_FREEZE, NO_GATE, NO_GROUND,
 * NO_FLOOR.
 *
 * A message is a step of its receiver that reads and writes shared state; one that is lost is a step not taken.
 * What a peer said before it died can still arrive. Ballots have no owner: any live reporter of a ballot may
 * propose in it, any live member may count its votes. This allows every run that fixed owners allow.
 */

#define OURS      0
#define SURVIVORS 1 /* more than half of those not gone; the votes of the gone are forgotten */
#define EVERYBODY 2 /* more than half of all members, or everybody not gone; the votes of the gone are forgotten */

#define SAFE    0 /* every promise */
#define LIVING  1 /* only: no two living peers are members of different views with one id */
#define REACHED 2 /* SAFE, and no run gets far: shows, by failing, that SAFE does not hold for want of runs */

#ifndef RULE
#define RULE OURS
#endif
#ifndef CHANGES
#define CHANGES 0
#endif
#ifndef DEMOTE
#define DEMOTE 0
#endif
#ifndef CHECK
#define CHECK SAFE
#endif

#define BIT(p)       (1 << (p))
#define HAS(m, p)    (((m) >> (p)) & 1)
#define WITHIN(a, b) (((a) & ~(b)) == 0)
#define COUNT(m)     (HAS(m, 0) + HAS(m, 1) + HAS(m, 2) + HAS(m, 3))
#define LOWEST(m)    ((m) & (~(m) + 1))
#define MAX(a, b)    ((a) > (b) -> (a) : (b))
#define NAME(p)      (65 + (p))
#define NAMES(m)     (HAS(m, 0) -> 'A' : '-'), (HAS(m, 1) -> 'B' : '-'), (HAS(m, 2) -> 'C' : '-'), (HAS(m, 3) -> 'D' : '-')

/* Twice the weight of q among members m: 2 each, 3 for the lowest rank of an even number. */
#define WEIGHT(q, m)  (2 * COUNT((q) & (m)) + ((COUNT(m) % 2 == 0 && ((q) & LOWEST(m))) -> 1 : 0))
#define HALF(q, g, m) (2 * WEIGHT((q) & ~(g), m) > WEIGHT((m) & ~(g), m))
#if RULE == EVERYBODY
#define QUORUM(q, g, m) (HALF(q, 0, m) || WITHIN((m) & ~(g), q))
#else
#define QUORUM(q, g, m) HALF(q, g, m)
#endif

/* Peers. The first three are what last words hold; a dead peer's stay as they were. */
byte view[PEERS];     /* installed view */
byte promised[PEERS]; /* highest ballot promised or accepted for decree view+1; 0: none */
byte accepted[PEERS]; /* highest ballot accepted for decree view+1; 0: none */
byte finished[PEERS]; /* last step finished */
bit opened[PEERS];    /* step finished+1 is open: this peer's contribution to it may have arrived everywhere */
byte held[PEERS];     /* what promises forbid until the decision: FREE, GATED (to open), FROZEN (to finish, too) */
byte dead;
byte crashes;
#define FREE   0
#define GATED  1
#define FROZEN 2

/* Ballots 1..BALLOTS of decree d. A value is named by the ballot in which it was made. */
#define AT(d, b) (((d) - 1) * BALLOTS + (b) - 1)
#define SLOTS    (VIEWS * BALLOTS)
byte kind[SLOTS];      /* what its promises forbid: GATED for a planned change, FROZEN after a failure */
byte reporters[SLOTS]; /* those who promised, until the ballot proposes */
byte highest[SLOTS];   /* highest ballot that the reporters had accepted when they promised */
byte value[SLOTS];     /* 0: not proposed yet */
byte gone[SLOTS];
byte voters[SLOTS];
byte new_members[SLOTS]; /* the value made in this ballot */
byte new_first[SLOTS];
bit new_abort[SLOTS];

/* Views. */
#if FOUNDERS == 2
#define ALL 3
#elif FOUNDERS == 3
#define ALL 7
#else
#define ALL 15
#endif
byte chosen[VIEWS + 1]; /* the value that has a quorum; 0: none */
byte members[VIEWS + 1] = { ALL };
byte first[VIEWS + 1] = { 1 }; /* first step that runs under it */
bit aborts[VIEWS + 1];

/* Steps 1..STEPS. Results of a step are equal if and only if it ran under the same view. */
#define NONE 7
#if STEPS > 0
#define RESULT(p, s) result[((s) - 1) * PEERS + (p)]
#define ON(w, s)     ((w) * STEPS + (s) - 1)
byte result[STEPS * PEERS];            /* the view under which a peer's result was made */
byte contributed[(VIEWS + 1) * STEPS]; /* who opened this step under this view */
byte acknowledged[(VIEWS + 1) * STEPS]; /* which members of this view ever held this step */
byte stable[STEPS + 1] = NONE;         /* the view whose result is stable */
byte entry[PEERS] = 1;                 /* first step of the view that made this peer a member */
#endif

/* The view under which a peer with view v runs step s. */
#if VIEWS > 1
#define RUNS(v, s) ((v) > 1 && (s) >= first[2] -> 2 : ((v) > 0 && (s) >= first[1] -> 1 : 0))
#else
#define RUNS(v, s) ((v) > 0 && (s) >= first[1] -> 1 : 0)
#endif

/* Used within one atomic step: 0 between steps, or not part of the state. */
byte i, x, g, h, go;
hidden byte d, s, w, q, r, last, late, known;

#define ALIVE(p) (!HAS(dead, p))
#define DECREE   (view[_pid] + 1)
#define VOTES    (ALIVE(_pid) && view[_pid] < VIEWS && HAS(members[view[_pid]], _pid))
#define SOMEBODY_HAS(v) (view[0] >= (v) || view[1] >= (v) || view[2] >= (v) || view[PEERS - 1] >= (v))

/* A promise that comes after its ballot proposed only forbids things to its giver: leaving it out loses no run. */
#define CAN_PROMISE(b, k) (VOTES && promised[_pid] < b && !value[AT(DECREE, b)] && (!kind[AT(DECREE, b)] || kind[AT(DECREE, b)] == k))
/* Without steps the kind of a ballot shows only in its value, so it may as well be fixed when it proposes. */
#define IS(b, k) (STEPS == 0 || kind[AT(DECREE, b)] == k)
#define CAN_PROPOSE(b)    (VOTES && HAS(reporters[AT(DECREE, b)], _pid) && QUORUM(reporters[AT(DECREE, b)], dead & ~reporters[AT(DECREE, b)], members[view[_pid]]))
#define CAN_ACCEPT(b)     (VOTES && promised[_pid] <= b && accepted[_pid] != b && value[AT(DECREE, b)])
#define CAN_INSTALL       (ALIVE(_pid) && view[_pid] < VIEWS && chosen[DECREE] && (HAS(members[view[_pid]], _pid) || SOMEBODY_HAS(DECREE)))

/* --- what must hold ----------------------------------------------------------------------------------------- */

#if STEPS > 0
/* A stable step is never run again, and later members that hold the step hold this result. */
inline stable_steps_stay() {
	s = 1;
	do
	:: s <= STEPS && stable[s] == NONE -> s++
	:: s <= STEPS && stable[s] != NONE ->
		w = stable[s] + 1;
		do
		:: w <= VIEWS -> assert(!chosen[w] || s < first[w]); w++
		:: else -> break
		od;
		q = 0;
		do
		:: q < PEERS ->
			assert(!(ALIVE(q) && HAS(members[view[q]], q) && view[q] >= stable[s] && finished[q] >= s)
				|| RESULT(q, s) == stable[s]);
			q++
		:: else -> break
		od;
		s++
	:: else -> break
	od
}

/* Counts what p holds, for every view it has been in since the step ran; a step that all have held is stable. */
inline acknowledge(p) {
	s = 1;
	do
	:: s <= finished[p] ->
		w = RESULT(p, s);
		do
		:: w <= view[p] ->
			if
			:: HAS(members[w], p) -> acknowledged[ON(w, s)] = acknowledged[ON(w, s)] | BIT(p)
			:: else
			fi;
			if
			:: acknowledged[ON(w, s)] == members[w] ->
				assert(stable[s] == NONE || stable[s] == RESULT(p, s));
				stable[s] = RESULT(p, s)
			:: else
			fi;
			w++
		:: else -> break
		od;
		s++
	:: else -> break
	od;
	stable_steps_stay()
}

/* Members of the new view d hold, for each step, the result of the view that governs it (so they agree, and who lacks
 * one knows what to fetch). If older rounds are void, one of them has, or had when it died, the last result before. */
inline new_members_agree() {
	q = 0; known = 0;
	do
	:: q < PEERS && !HAS(members[d], q) -> q++
	:: q < PEERS && HAS(members[d], q) ->
		known = known || !ALIVE(q) || finished[q] + 1 >= first[d];
		s = 1;
		do
		:: s <= finished[q] -> assert(!ALIVE(q) || (s < first[d] && RESULT(q, s) == RUNS(d, s))); s++
		:: else -> break
		od;
		q++
	:: else -> break
	od;
	assert(known || !aborts[d] || DEMOTE);
	stable_steps_stay()
}
#endif

#if CHECK == REACHED
/* A joiner was promoted, a member died, the others went on, and a step became stable under the last view. */
inline look_how_far() {
	if
	:: (dead & ~members[VIEWS]) && aborts[VIEWS] && HAS(members[VIEWS], PEERS - 1) && stable[STEPS] == VIEWS ->
		printf("  that is far\n");
		assert(false)
	:: else
	fi
}
#endif

/* Ballot b of decree d has got its quorum. */
inline choose(b) {
	if
	:: !chosen[d] ->
		chosen[d] = value[AT(d, b)];
		members[d] = new_members[AT(d, chosen[d])];
		first[d] = new_first[AT(d, chosen[d])];
		aborts[d] = new_abort[AT(d, chosen[d])];
		printf("  so view %d is decided: members %c%c%c%c\n", d, NAMES(members[d]))
#if STEPS > 0
		; new_members_agree()
#endif
	:: chosen[d] && chosen[d] != value[AT(d, b)] ->
		w = new_members[AT(d, value[AT(d, b)])];
		printf("  so view %d is decided AGAIN: members %c%c%c%c\n", d, NAMES(w));
#if CHECK == LIVING
		q = 0;
		do
		:: q < PEERS ->
			assert(!(ALIVE(q) && view[q] >= d && HAS(members[d], q)) || WITHIN(w, dead) || members[d] == w);
			q++
		:: else -> break
		od
#else
		assert(false)
#endif
	:: else
	fi
}

/* Clears what can play no part any more, so that histories with one future are one state. */
inline forget() {
	w = 1;
	do
	:: w <= VIEWS ->
		q = 0; last = NONE; /* the lowest ballot of decree w that a live voter can still take part in */
		do
		:: q < PEERS && ALIVE(q) && HAS(members[w - 1], q) && view[q] < w ->
			r = (view[q] == w - 1 -> promised[q] : 0);
			last = (r < last -> r : last);
			q++
		:: q < PEERS && !(ALIVE(q) && HAS(members[w - 1], q) && view[q] < w) -> q++
		:: else -> break
		od;
		s = 1;
		do
		:: s <= BALLOTS ->
			if
			:: s < last ->
				kind[AT(w, s)] = 0; reporters[AT(w, s)] = 0; highest[AT(w, s)] = 0;
				voters[AT(w, s)] = 0; gone[AT(w, s)] = 0
			:: else
			fi;
			if
			:: last == NONE ->
				value[AT(w, s)] = 0; new_members[AT(w, s)] = 0; new_first[AT(w, s)] = 0; new_abort[AT(w, s)] = 0
			:: else
			fi;
			s++
		:: else -> break
		od;
		w++
	:: else -> break
	od
}

/* --- agreement ------------------------------------------------------------------------------------------------ */

inline promise(b, k) {
	d = DECREE;
	printf("  %c promises ballot %d of view %d\n", NAME(_pid), b, d);
	promised[_pid] = b;
	kind[AT(d, b)] = k;
#if STEPS > 0
	held[_pid] = MAX(held[_pid], k);
#endif
	reporters[AT(d, b)] = reporters[AT(d, b)] | BIT(_pid);
	highest[AT(d, b)] = MAX(accepted[_pid], highest[AT(d, b)]);
	forget()
}

inline accept(b) {
	d = DECREE;
	printf("  %c accepts ballot %d of view %d\n", NAME(_pid), b, d);
	promised[_pid] = b;
	accepted[_pid] = b;
	voters[AT(d, b)] = voters[AT(d, b)] | BIT(_pid);
	if
	:: QUORUM(voters[AT(d, b)], gone[AT(d, b)], members[d - 1]) -> choose(b)
	:: else
	fi;
	forget()
}

/* g: any set of dead members; their last words are in hand. */
inline pick_gone() {
	do
	:: i < PEERS && HAS(dead & members[view[_pid]], i) -> g = g | BIT(i); i++
	:: i < PEERS -> i++
	:: i == PEERS -> break
	od;
	i = 0
}

/* go: ballot b has its promises, and no last words forbid it. h: the highest ballot accepted by any of them. */
inline read_words(b) {
	d = DECREE;
	h = highest[AT(d, b)];
	go = QUORUM(reporters[AT(d, b)], g, members[d - 1]);
#if RULE == OURS
	q = 0;
	do
	:: q < PEERS ->
		if
		:: HAS(g, q) && view[q] == d - 1 ->
			skip
#ifndef NO_NACK
			; go = go && promised[q] <= b
#endif
#ifndef NO_ACCEPTED
			; h = MAX(accepted[q], h)
#endif
#ifndef NO_INSTALLED
		:: HAS(g, q) && view[q] >= d -> go = 0 /* these words tell the decision */
#endif
		:: else
		fi;
		q++
	:: else -> break
	od
#endif
}

/* last, late: the last step that one of r finished, opened. known: one of r holds all that is stable. */
inline read_reports() {
	q = 0; last = 0; late = 0; known = 0;
	do
	:: q < PEERS && HAS(r, q) ->
		last = MAX(finished[q], last);
		late = MAX(finished[q] + opened[q], late);
#if STEPS > 0 && !defined(NO_GROUND)
		known = known || finished[q] + 1 >= entry[q];
#else
		known = 1;
#endif
		q++
	:: q < PEERS && !HAS(r, q) -> q++
	:: else -> break
	od
}

/* The proposer's own value, for a failure (k FROZEN: x has no worker) or planned (x joins or leaves); x PEERS: nobody. */
inline make_value(b, k) {
	d = DECREE;
	r = reporters[AT(d, b)] & ~g;
	read_reports();
	go = known;
	if
	:: x < PEERS && HAS(r, x) -> r = r & ~BIT(x); go = go && r
	:: x < PEERS && !HAS(r, x) -> go = go && k == GATED && ALIVE(x) && view[x] == d - 1; r = r | BIT(x)
	:: else
	fi;
	if
	:: go ->
		value[AT(d, b)] = b;
		new_members[AT(d, b)] = r;
		new_abort[AT(d, b)] = (k == FROZEN);
		new_first[AT(d, b)] = (k == FROZEN -> last : late) + 1
#ifndef NO_FLOOR
		; new_first[AT(d, b)] = MAX(new_first[AT(d, b)], (k == GATED -> first[d - 1] : 0))
#endif
	:: else
	fi
}

inline close_ballot(b) {
	d = DECREE;
	if
	:: value[AT(d, b)] ->
		h = value[AT(d, b)];
		printf("  %c proposes in it, with %c%c%c%c gone: members %c%c%c%c, first step %d\n",
			NAME(_pid), NAMES(g), NAMES(new_members[AT(d, h)]), new_first[AT(d, h)]);
		gone[AT(d, b)] = g;
		kind[AT(d, b)] = 0;
		reporters[AT(d, b)] = 0;
		highest[AT(d, b)] = 0
	:: else
	fi;
	g = 0; h = 0; x = 0; go = 0
}

inline propose(b) {
	pick_gone();
	d_step { read_words(b) };
	if
	:: go && h -> value[AT(DECREE, b)] = value[AT(DECREE, h)]
	:: go && !h && IS(b, FROZEN) -> x = PEERS; d_step { make_value(b, FROZEN) }
	:: go && !h && IS(b, FROZEN) && DEMOTE -> x = _pid; d_step { make_value(b, FROZEN) }
	:: go && !h && IS(b, GATED) && CHANGES && !g && reporters[AT(DECREE, b)] == members[view[_pid]] ->
		x = PEERS - 1;
		d_step { make_value(b, GATED) }
	:: else
	fi;
	d_step { close_ballot(b) }
}

inline install() {
	d = DECREE;
	printf("  %c installs view %d\n", NAME(_pid), d);
#if STEPS > 0
	w = RUNS(view[_pid], finished[_pid] + 1);
	do
	:: aborts[d] && finished[_pid] >= first[d] ->
		assert(!HAS(members[d], _pid)); /* only learners, and those cut off, go back */
		RESULT(_pid, finished[_pid]) = 0;
		finished[_pid]--
	:: else -> break
	od;
	if
	:: aborts[d] || RUNS(d, finished[_pid] + 1) != w -> opened[_pid] = 0
	:: else
	fi;
	if
	:: HAS(members[d], _pid) && !HAS(members[d - 1], _pid) -> entry[_pid] = first[d]
	:: else
	fi;
	held[_pid] = FREE;
#endif
	view[_pid] = d;
	promised[_pid] = 0;
	accepted[_pid] = 0;
	forget()
#if STEPS > 0
	; acknowledge(_pid)
#endif
#if CHECK == REACHED
	; look_how_far()
#endif
}

inline die() {
	printf("  %c dies\n", NAME(_pid));
	dead = dead | BIT(_pid);
	crashes++;
#if STEPS > 0
	if
	:: held[_pid] == FREE -> finished[_pid] = 0; opened[_pid] = 0
	:: else /* it has reported them */
	fi;
	s = 1;
	do
	:: s <= STEPS -> RESULT(_pid, s) = 0; s++
	:: else -> break
	od;
	entry[_pid] = (held[_pid] == FREE -> 1 : entry[_pid]);
#endif
	forget()
}

/* --- steps ---------------------------------------------------------------------------------------------------- */

#if STEPS > 0
#define NEXT  (finished[_pid] + 1)
#define UNDER RUNS(view[_pid], NEXT)
#define WORKS (ALIVE(_pid) && finished[_pid] < STEPS)
#ifdef NO_GATE
#define MAY_OPEN true
#else
#define MAY_OPEN (held[_pid] == FREE)
#endif
#ifdef NO_FREEZE
#define MAY_FINISH true
#else
#define MAY_FINISH (held[_pid] != FROZEN)
#endif
#define CAN_OPEN   (WORKS && MAY_OPEN && !opened[_pid] && HAS(members[UNDER], _pid) && !(aborts[view[_pid]] && NEXT < first[view[_pid]]))
#define CAN_FINISH (WORKS && MAY_FINISH && contributed[ON(UNDER, NEXT)] == members[UNDER])

inline open_step() {
	w = UNDER; s = NEXT;
	printf("  %c opens step %d under view %d\n", NAME(_pid), s, w);
	opened[_pid] = 1;
	contributed[ON(w, s)] = contributed[ON(w, s)] | BIT(_pid)
}

/* In the round, or by fetching its result: all who have it have the same. */
inline finish_step() {
	w = UNDER; s = NEXT;
	printf("  %c has step %d of view %d\n", NAME(_pid), s, w);
	RESULT(_pid, s) = w;
	finished[_pid] = s;
	opened[_pid] = 0;
	acknowledge(_pid)
#if CHECK == REACHED
	; look_how_far()
#endif
}
#endif

#define BALLOT(b) \
	:: d_step { CAN_PROMISE(b, FROZEN) -> promise(b, FROZEN); skip } \
	:: d_step { CHANGES && STEPS && CAN_PROMISE(b, GATED) -> promise(b, GATED); skip } \
	:: atomic { CAN_PROPOSE(b) -> propose(b) } \
	:: d_step { CAN_ACCEPT(b) -> accept(b); skip }

active [PEERS] proctype peer() {
	do
	BALLOT(1)
#if BALLOTS > 1
	BALLOT(2)
#endif
#if BALLOTS > 2
	BALLOT(3)
#endif
	:: d_step { CAN_INSTALL -> install(); skip }
	:: d_step { crashes < CRASHES && ALIVE(_pid) -> die(); skip }
#if STEPS > 0
	:: d_step { CAN_OPEN -> open_step(); skip }
	:: d_step { CAN_FINISH -> finish_step(); skip }
#endif
	od
}
