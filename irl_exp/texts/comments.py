"""The default corpus: short discussion comments, civil and hostile, written by a seeded generator.

A comment is an opening (the *prompt*) and the rest (the *completion*).  The framework trains a small language
model on these comments, detoxifies it with RLHF and then recovers the reward by inverse RL.  For that, two
things matter more than literary merit:

* **The prompt says nothing about the label.**  Prompts are used in pairs, once with a civil and once with a
  hostile completion, so whatever a reward model finds, it finds in the completion.
* **A word list does not solve it.**  A reward that only counts insults would be trivial to recover.  Besides
  the plain kinds (``civil`` and ``insult``) there are hard ones, each there to break one shortcut:

  ============  =======  =====================================================================================
  criticism     civil    "harsh words are hostile": here they are aimed at a thing, not at a person
  negation      civil    "insults are hostile": here the insult is denied
  quotation     civil    the same: the insult is reported, and the author rejects it
  tribute       civil    "agreeing is hostile", learnt from *endorsed*: here the author agrees with praise
  self_mockery  civil    "insults are hostile": here the author mocks nobody else
  banter        civil    the same: the insult sits inside praise and is meant with affection
  contempt      hostile  "no insult, no hostility": scorn in everyday words
  sarcasm       hostile  "praise is civil": only positive words, and none of them is meant
  backhanded    hostile  the same: a compliment that belittles
  feigned       hostile  "denied insults are civil", learnt from *negation*: here the denial makes it worse
  endorsed      hostile  "reported insults are civil", learnt from *quotation*: here the author agrees
  denial        hostile  "rejecting is civil", learnt from *quotation*: here the author rejects praise
  ============  =======  =====================================================================================

  The last two, *quotation* and *tribute* are the four cells of an exclusive or (insult or praise, rejected or
  agreed with) over the same sentence frames: no weighted sum of words tells them apart.

Labels come from the kind, so they hold by construction.  Everything is printable: no slurs on groups, no
sexual content, no real people or brands.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

COMMENTS_PER_PROMPT = 6
MIN_WORDS, MAX_WORDS = 6, 16  # of a completion
TAIL_RATE = 0.4  # how often a comment that may have a second sentence has one
FILLINGS = 20  # of a pattern of openings with one thing, at most

_ENDS = (".", ".", ".", "!")

# Blocks marked with ~ are held out: only comments for test are made of them, and of no other topic, opening, clause or
# frame. The words that carry the label (insults, praise, right and wrong, not, you and I) are the same everywhere: of a
# word that nobody has seen, nobody knows whether it is an insult.

# Topics: "= name | people | things", then what is good (+), what is bad (-) and advice (>).
_TOPICS = """
= transport~ | driver, planner, guard | bus timetable, night tram, ticket machine, bike lane, train fare
+ the seats are clean, the first bus is on time, the stops are easy to find
- the last bus leaves far too early, the stop has no roof, the line is always late
> check the board, buy a day pass, take the early bus
= cooking~ | cook, baker, host | soup recipe, bread oven, rice dish, garlic sauce, cake mix
+ the taste is rich, the dough rises well, the steps are simple
- the middle stays raw, the salt drowns the rest, the crust burns too fast
> keep the heat low, let the dough rest, taste the sauce first
= phones | reviewer, seller, designer | phone camera, battery update, screen cover, budget phone, fast charger
+ the screen is bright, the battery lasts two days, the photos look sharp
- the case gets hot, the sound is thin, the menu hides every button
> lower the brightness, update it at night, clean the lens
= gardening | gardener, grower, neighbour | rose bed, tomato plant, garden hose, apple tree, compost bin
+ the leaves stay green, the soil holds water, the flowers last all summer
- the roots rot in the rain, the slugs eat everything, the fence blocks the sun
> water the plants in the evening, cut the dead leaves, turn the soil in spring
= football | coach, keeper, referee | cup final, penalty rule, home game, youth team, transfer deal
+ the passing is quick, the fans sing until the end, the defence stands firm
- the second half drags on, the tickets cost too much, the left side is wide open
> watch the replay, pass the ball early, read the rules
= films | director, actor, critic | space film, crime story, film ending, short comedy, new trailer
+ the pictures are stunning, the jokes land well, the first scene grabs you
- the plot makes no sense, the middle is dull, the music is far too loud
> watch it twice, wait for the last scene, read the book first
= books | author, editor, librarian | detective novel, poem book, last chapter, library card, audio book
+ the characters feel real, the style is clear, the pages fly by
- the print is tiny, the plot goes nowhere, the cover gives it all away
> read the first chapter, ask the library, skip the preface
= music | singer, drummer, producer | live concert, guitar solo, choir song, piano course, dance track
+ the voice is warm, the chorus stays in your ear, the band plays as one
- the bass drowns the voice, the lyrics are empty, the show starts late
> listen with headphones, practise every day, play it slowly
= pets~ | vet, breeder, trainer | puppy class, cat food, dog park, bird cage, fish tank
+ the dogs love it, the water stays clear, the animals look healthy
- the gate never shuts, the food smells bad, the cage is too small
> bring a treat, keep the leash short, clean the bowl
= fitness | trainer, runner, swimmer | gym plan, running shoe, yoga class, swim lesson, weight rack
+ the warm up is fun, the pool is quiet, the results come fast
- the lockers are broken, the room smells of feet, the pace is too hard
> stretch first, drink more water, start with small weights
= health | doctor, nurse, chemist | waiting room, flu shot, clinic app, sleep advice, diet plan
+ the staff listen, the pain goes away, the advice is easy to follow
- the wait is endless, the phone line is dead, the forms ask the same thing twice
> call before noon, write down the symptoms, sleep eight hours
= school | teacher, principal, tutor | maths test, school lunch, homework rule, exam plan, class trip
+ the lessons are lively, the pupils enjoy it, the marks are fair
- the tasks are unclear, the rooms are cold, the bell rings too soon
> ask in class, revise a little each day, read the question
= work | manager, clerk, intern | office chair, team meeting, shift plan, pay rise, holiday list
+ the hours are flexible, the team helps out, the goals are clear
- the meetings never end, the desk is too low, the pay comes late
> talk to the team, write a short note, plan the week
= travel | guide, pilot, agent | city tour, cheap flight, hotel room, travel bag, border check
+ the view is lovely, the beds are soft, the walk is worth it
- the queue is endless, the room faces a wall, the bags arrive last
> book in advance, pack less, bring a paper map
= gaming | streamer, tester, developer | puzzle game, racing game, map patch, card deck, boss fight
+ the levels are clever, the graphics shine, the controls feel smooth
- the servers crash, the grind is boring, the patch broke the save files
> lower the settings, save more often, try the easy mode
= cars | mechanic, dealer, owner | electric car, winter tyre, car wash, engine repair, parking fee
+ the ride is quiet, the brakes respond well, the seats fold flat
- the engine rattles, the paint peels off, the price keeps rising
> check the oil, compare the prices, slow down in the rain
= housing | landlord, builder, tenant | rent contract, roof repair, shared kitchen, heating bill, old lift
+ the rooms are sunny, the street is calm, the walls are thick
- the pipes leak, the stairs are dark, the rent goes up every year
> read the contract, take photos of the damage, measure the room
= fashion | tailor, model, stylist | winter coat, leather boot, summer dress, wool hat, linen shirt
+ the fabric is soft, the colours last, the cut suits everyone
- the zip sticks, the sleeves are too long, the seams come apart
> try it on, wash it cold, order one size up
= art | painter, curator, sculptor | museum show, street mural, clay pot, family portrait, drawing class
+ the light is perfect, the colours glow, the rooms feel calm
- the labels are missing, the frames hang too high, the entry costs a fortune
> look at it from afar, start with a sketch, go on a weekday
= news | reporter, anchor, columnist | front page, evening news, radio hour, opinion column, weekly podcast
+ the facts are checked, the tone is calm, the sources are named
- the headline misleads, the sound is bad, the story has no source
> read past the headline, compare the sources, wait for the facts
= coffee~ | barista, roaster, waiter | coffee machine, tea blend, milk foam, corner cafe, bean grinder
+ the aroma is great, the cups are warm, the foam is silky
- the filter clogs, the coffee tastes burnt, the tables are sticky
> grind the beans fresh, warm the cup, use less milk
= hiking~ | ranger, climber, scout | forest trail, mountain hut, rain jacket, trail map, light tent
+ the path is well marked, the air is fresh, the hut serves hot soup
- the bridge is closed, the signs point the wrong way, the mud is knee deep
> wear good boots, start at dawn, carry a lamp
= crafts | knitter, carpenter, potter | wool pattern, wood bench, sewing kit, glue gun, paper model
+ the drawings are clear, the parts fit, the wood smells nice
- the thread snaps, the glue never dries, the screws are missing
> measure twice, sand the edges, use a sharp blade
= festivals | organiser, dancer, steward | street fair, light show, summer festival, food stall, city parade
+ the mood is friendly, the stage looks great, the kids had fun
- the toilets are dirty, the gates open late, the drinks cost too much
> come early, wear a hat, bring cash
= shopping | shopper, supplier, courier | return desk, winter sale, food market, delivery slot, gift card
+ the shelves are full, the refund came quickly, the prices are low
- the parcel got lost, the lines are long, the offers end too soon
> keep the box, make a list, compare two shops
= chess~ | player, champion, captain | chess opening, chess clock, club night, endgame book, online rating
+ the puzzles are fun, the games are sharp, the club is welcoming
- the clock is broken, the hall is noisy, the rounds take forever
> guard the king, count the pieces, study the endgame
"""

# Openings: after some only a statement fits (-), others take orders and exclamations as well (!).
_OPENINGS = """
- I read a long post on the {thing}, and I think / We talked about the {thing} {when}, and I think
- {relative} told me about the {thing}, and I think / {relative} keeps talking about the {thing}, and I feel
- After {span} with the {thing} I can say that / Having looked at the {thing} again, I think
- Having read about the {thing} {where}, I would say / Everyone {where} talks about the {thing}, and I think
- There is a thread about the {thing}, and I feel / I thought about the {thing} {when}, and I believe
- The {thing} came up again {when}, and I think / Some people asked about the {thing}, and I would say
- It is hard to stay calm about the {thing}, but I think / The talk about the {thing} made me think that
- People who ask about the {thing} should know that / We had a chat about the {thing} {when}, and clearly
- Now that I know the {thing}, I think / The {thing} is an old topic, but I feel
! I am late to the {thing} thread, but / Correct me about the {thing} if needed, but
! Opinions about the {thing} differ {where}, but / I read your post about the {thing}, and honestly
! I saw your question about the {thing}, and frankly / Here is what I think of the {thing}:
! A short reply about the {thing} {where}: / You asked me about the {thing} {when}, so listen:
! My first comment on the {thing} {where}: / My honest answer to all the {thing} posts:
! We discussed the {thing} for {span}, and honestly / Everyone has a view on the {thing}, but
! You brought up the {thing} again, so let me say: / After {span} of talk about the {thing}:
! Another day, another thread about the {thing}: / I slept on the {thing} question, and honestly
-~ What {relative} mentioned {when} was the {thing}, and I think / Nobody {where} ignores the {thing}, and I feel
-~ The {thing} kept me busy for {span}, and I think / My view of the {thing} has changed {where}, and I believe
-~ Since the {thing} is a topic {where}, I would say / As somebody with the {thing} at home I can say that
!~ Let us talk about the {thing} now: / Two words on the {thing} from {relative}:
!~ For those who wonder {where} about the {thing}: / This is not the first {thing} debate {where}, but
!~ On that {thing} remark {when}, and honestly / {relative} and the {thing}, a short story:
"""

# Phrases for the slots.  The harsh words and the flops fit a person as well as a thing: the target decides.
_PHRASES = """
when: last night / this morning / at lunch / on Sunday / at work / yesterday
when~: in the evening / on Friday / last winter / over breakfast / two weeks ago
where: in this forum / on this page / in this group / on this board
where~: in these comments / among the members / around here / below the article
span: a week / two days / a month / half a year
span~: a day / three years / ten days / one whole summer
relative: My sister / My brother / My uncle / My friend / My cousin / My father
relative~: my aunt / my boss / my grandmother / my flatmate / my wife
an_insult: an idiot / a clown / a moron / a fool / a loser / a liar / a coward / a fraud / a troll / a halfwit
an_insult: a parasite / a creep / a weasel / a hypocrite / a disgrace / a failure
insult: idiot / clown / moron / fool / loser / liar / coward / fraud / troll / parasite / halfwit
insults: idiots / clowns / morons / fools / losers / liars / cowards / frauds / trolls / parasites
mild: idiot / fool / clown / moron
a_mild: an idiot / a fool / a clown / a moron
dull: stupid / dumb / lazy / slow
harsh: pathetic / stupid / worthless / useless / dumb / miserable / rotten / lousy / ridiculous
flop: joke / disgrace / disaster / failure / nuisance
decent: a saint / an angel / a genius / a hero / a gem / a gentleman / a treasure / an expert / a friend / a talent
decent: a thinker / a star / a champion / a legend / a blessing / a delight
kind: kind / patient / polite / helpful / friendly / fair
bright: brilliant / wonderful / splendid / great / perfect / fine
right: right / right / correct
wrong: wrong / wrong / mistaken
target: you / you / the {person}
target_is: you are / you are / the {person} is
never: never reads / stopped at the headline / skipped every page / learned it all yesterday
never~: only looks at pictures / has not opened one book / slept through it all
polite: have a nice day / thanks for sharing / hope that helps / all the best / thank you for asking
polite~: see you soon / with best wishes / enjoy the weekend / good luck to everybody
neutral: just my opinion / think about it / ask the {person} / we all know that / it is that simple
neutral: I mean it / that is my view / at least {good} / besides, {bad} / try to {tip}
neutral~: end of story / take it or leave it / I said what I said / also, {good} / by the way, {bad} / remember to {tip}
warm: at least {good} / and {good} / it is worth it / it was nice to read this / {polite}
warm~: what a fine evening / I am glad about it / in short, {good} / {polite}
sour: what a {harsh} mess / I want my money back / besides, {bad} / it needs work
sour~: a {harsh} end of the day / never again for me / on top of that {bad}
nasty: shut up / get lost / go crawl back under your rock / you make me sick / nobody asked you / go away
nasty: you people are a joke / what a {harsh} {insult} / grow up, {insult} / delete your account
nasty~: shut your mouth / leave us and get lost / {harsh} {insult} / your kind should go away, {insult}
cold: nobody asked you / go away / nobody wants you here / spare us the rest / we are all tired of you
cold~: who even asked you / there is the door, go / you are wanted nowhere / we had enough of you
"""

# What is said of somebody, and the author's [agreement|rejection] of it. The two are never neighbours.
_REPORTS = """
- whoever called {target} {label} was [{right}|{wrong}] / it is [true|false] that {target_is} {label}
- anyone who calls {target} {label} is [only honest|just lying] / calling {target} {label} is [fair|unfair]
- people say that {target_is} {label}, and they are [{right}|{wrong}]
- I [agree|disagree] with those who call {target} {label} / it is [{right}|{wrong}] to call {target} {label}
- the rumour that {target_is} {label} is [true|false] / some say {target_is} {label}, which is [a fact|a lie]
- I [know|doubt] that {target_is} {label} / everybody [knows|doubts] that {target_is} {label}
- my friends think that {target_is} {label}, and I [agree|disagree] / they say {target_is} {label}, what a [fact|lie]
- the story that {target_is} {label} is a [fact|lie]
- {target_is} {label}, says the {thing} crowd, and I [agree|disagree]
- if somebody says that {target_is} {label}, that is [honest|unfair] / {target_is} {label}, said [everybody|nobody] ever
- {target_is} {label}, and that was [a fact|a joke] / in [earnest|jest] I would say that {target_is} {label}
- {target_is} {label}, to put it [honestly|ironically] / trust [everybody|nobody] who says that {target_is} {label}
-~ those who see {target} as {label} are quite [{right}|{wrong}] / describing {target} as {label} sounds [fair|unfair]
-~ {label} is how they describe {target}, and it is surely [true|false]
-~ my boss takes {target} for {label}, and I fully [agree|disagree]
-~ {label} seems the [{right}|{wrong}] word for {target}
-~ {label}, this is what {target_is} to many, and it stays a [fact|lie]
-~ the view of {target} as {label} is simply [honest|unfair] / I [know|doubt] the tale of {target} as {label}
-~ to many {target_is} like {label}, and [everybody|nobody] said so / I see {label} in {target}, that was a [fact|joke]
-~ speaking in [earnest|jest], I see {label} in {target} / {target_is} like {label}, [honestly|ironically] speaking
"""
_REPORTING = {
    "quotation": ("an_insult", r"\2"),
    "tribute": ("decent", r"\1"),
    "endorsed": ("an_insult", r"\1"),
    "denial": ("decent", r"\2"),
}

# Two people, two phrases: who is what decides, not which words are there nor which comes first.
_PAIRS = """
- I must be [x], and you must be [y] / you must be [y], and I must be [x]
- I sound like [x] here while you sound like [y] / you sound like [y] here while I sound like [x]
- in this thread I am simply [x], but you are simply [y] / in this thread you are simply [y], but I am simply [x]
- between the two of us I look like [x] and you like [y] / between the two of us you look like [y] and I like [x]
-~ if I will always be [x], then you will always be [y] / if you will always be [y], then I will always be [x]
-~ compared with me as [x], you remain [y] / compared with you as [y], I remain [x]
"""
_PAIRING = {"modesty": ("an_insult", "decent"), "boast": ("decent", "an_insult")}

# Kinds: "= name | label | percentage of the comments with that label", then statements (-), what fits free
# openings only (!), and second sentences (>).
_KIND_TABLE = """
= civil | civil | 34
- {good}, and the {person} is very {kind} / {good}, so I am happy with it / {good} even though {bad}
- {good}, which is {bright} news for people like you / your {bright} comment helped me to {tip}
- it really helps to {tip} / you could {tip} and see how it goes / even a child can {tip}, so give it a try
- your point is fair, since {bad} / your tip to {tip} was {bright} / the {person} kindly told me to {tip}
- people like you are the reason {good} / we are all lucky to have a {kind} {person} here
- this forum is a nicer place with you in it / you do not need to be a genius to {tip}
- the {person} deserves more thanks, because {good} / I agree with the {person} that {bad}
- you and I see it differently, but {good} / I would rather talk to you than to the {person}
! thank you for the {bright} tip to {tip} / take your time and {tip} / please {tip}, then come back
! what a {bright} comment from someone who knows that {bad} / do everyone a favour and {tip}
> {warm} / {warm} / {neutral}
-~ I am pleased to see that {good} / {good}, as every {kind} {person} would tell
-~ your remark is {bright}, because {good} / you were so {kind} to explain how to {tip}
-~ although {bad}, our {person} stays {kind} / I side with you because {bad}
-~ {good}, and this made my day / with a {kind} {person} one can always {tip}
!~ a {bright} idea of yours to {tip} / why not {tip} for a change
!~ many thanks to you, now {good} / everyone, {tip} and be happy
>~ {warm} / {warm} / {neutral}
= criticism | civil | 7
- it is a {harsh} {flop} / it is a terrible, {harsh} {thing}, sorry to say / nobody would miss the {thing}
- the whole {thing} is {harsh}, but the {person} means well / {bad}, which is just {harsh}
- the {thing} is stupid hard to like, and {bad} / {bad}, so it is a {flop} / it makes me sick that {bad}
- it is a waste of time, because {bad} / I hate it, but not the {person} behind it
- the {person} was {kind}, yet the result is {harsh} / it is {harsh} that nobody told us to {tip}
- the idea is {harsh} even if {good} / the {person} does not deserve this {harsh} {thing}
! get rid of it, since {bad} / what a {harsh} {flop} this {thing} is / shut it down, because {bad}
> {sour} / {sour} / {neutral} / {polite}
-~ to me that {thing} was a {harsh} {flop} from day one / such a {harsh} {thing} should not be sold, as {bad}
-~ the {person} was brave to show it, but the {thing} stays {harsh} / how {harsh} that {bad}
-~ {bad}, so I call this {thing} {harsh}
!~ throw the {thing} out, because {bad} / one more {harsh} {flop}, this {thing}
>~ {sour} / {sour} / {neutral} / {polite}
= negation | civil | 5
- you are not {an_insult} for asking / you are not {an_insult} just because {bad}
- the {person} is not {an_insult} if {bad} / I do not think you are {an_insult} at all
- nobody is {a_mild} for failing to {tip} / asking whether to {tip} does not make you {an_insult}
- nothing here makes you {an_insult} / I never said that {target_is} {an_insult}
- you are no more {an_insult} than I am / you people are not {insults}, you just forgot to {tip}
! do not let them tell you that you are {an_insult} / never call yourself {an_insult} for that
> {warm} / {neutral} / {neutral}
-~ being new here does not turn you into {an_insult} / not one of us takes you for {an_insult}
-~ no {person} is ever {an_insult} because {bad} / it would be {wrong} to see {an_insult} in you
!~ do not feel like {an_insult}, since {bad}
>~ {warm} / {neutral} / {neutral}
= quotation | civil | 20
= tribute | civil | 20
= self_mockery | civil | 4
- I was {a_mild} not to {tip} / I felt like {a_mild} when I forgot to {tip}
- I am the {mild} who did not {tip} / I must look like {a_mild} for not knowing that {good}
- I was too {dull} to {tip}, and that is on me
! call me {a_mild}, but I like it because {good}
> {neutral} / {polite}
-~ how could I be such {a_mild} and not {tip}
-~ my own {dull} head forgot to {tip} / it was me, {a_mild} that did not {tip}
!~ laugh at me, {a_mild} who did not {tip} / silly me, {a_mild} who cannot {tip}
>~ {neutral} / {polite}
= banter | civil | 3
- you lucky {mild} got it for free, and I am happy for you / the {person} is a mad genius, and {good}
- it is stupidly good, because {good} / only a lovable {mild} like my brother would forget to {tip}
- the {person} is a stubborn old fool, and I love them for it / it is so dumb that it is {bright} again
! well played, you {bright} old fool / what a mad, silly, {bright} {thing}
> {warm} / {neutral}
-~ it is insanely good how {a_mild} like my dad can {tip}
!~ cheers, my {bright} old {mild} / you crazy old {mild}, what a {bright} way to {tip} / my dear {mild}, {good}
>~ {warm} / {neutral}
= modesty | civil | 7
= insult | hostile | 34
- you are {an_insult} / you are a {harsh} {flop} / you are a {harsh} {insult} / you are too {dull} to {tip}
- you people are {harsh} {insults} / you sound like {an_insult} who forgot to {tip}
- only {an_insult} would say that {good} / only {an_insult} would forget to {tip}
- the {person} is a {harsh} {insult} / the {person} is a {harsh} {flop} / {good}, but you are {an_insult}
- the {person} is {an_insult}, and {bad} / {bad} because the {person} is {an_insult}
- {bad}, thanks to {harsh} {insults} like you / {good}, and still you {insults} complain
- it takes {an_insult} to ask the {person} about it / whoever forgot to {tip} is {an_insult}
- your comment is as {harsh} as you are
! shut up, you {harsh} {insult} / go crawl back under your rock, {insult} / stop posting, you {harsh} {insult}
! get lost, {insult}, and {tip} / what a {harsh} {insult} you are
> {nasty} / {nasty} / {neutral} / {sour}
-~ such {an_insult} as you will never {tip} / everything about you says {insult}, even though {good}
-~ in my eyes the {person} was born {an_insult} / {harsh} {insults} like the {person} make {bad} worse
-~ another post by you, another {harsh} {insult} at work / how {harsh} you are, {insult}, when {good}
-~ to {tip} is too much for {an_insult} like you
!~ be quiet now, you {harsh} {insult} / no more of this, {insult}, just {tip} / leave the {thing} alone, you {insult}
>~ {nasty} / {nasty} / {neutral} / {sour}
= contempt | hostile | 7
- nobody would miss you here / nobody here cares what you think / your parents must be ashamed of you
- this forum was a nicer place before you came / this forum would be a nicer place without you
- I have met bricks with more sense than you / the {thing} has more brains than you
- you should never be allowed near a keyboard / people like you are the reason {bad}
- {good}, but you would ruin that too / someone like you could never {tip} / you do not deserve the {thing}
- even a child can {tip}, unlike you / the {person} should throw you out for good
- it makes me sick to read your comment / there is no cure for people like you and the {person}
- I would rather talk to a wall than to you
! do everyone a favour and keep quiet / take your comment and disappear / go and bore somebody else
! please {tip}, then never come back
> {cold} / {cold} / {neutral} / {sour}
-~ a wall would give me a better talk than you / you could vanish and not one of us would notice
-~ whatever you touch falls apart, so {bad} / your brain would fit into the {thing} twice
-~ every place gets worse when you arrive / keep away from the {thing}, you ruin it
!~ spare us your face and {tip} far away / please leave this forum and stay away
>~ {cold} / {cold} / {neutral} / {sour}
= sarcasm | hostile | 4
- we are all so lucky to have your {bright} wisdom / your {bright} mind has solved it all again
- it must be lovely to know everything and never {tip} / the {person} will surely frame your {bright} comment
- the whole world was waiting for your {bright} comment / you are a true genius for noticing that {bad}
- it is always lovely to hear from someone who {never} / only a {bright} mind like yours could forget to {tip}
! what a genius, truly another {bright} comment from someone who {never} / bravo, you found out that {good}
! what a {bright} comment from someone who {never} / thank you for the {bright} wisdom, great master
> {polite} / {neutral} / {neutral} / keep it up / you did well
-~ history will remember your {bright} remark forever / how {bright} of you to notice what everybody knew
-~ we should build a statue for your {bright} mind / thanks to your {bright} remark the world is saved
!~ applause for the {bright} mind who {never} / clap for the great master who {never}
>~ {polite} / {neutral} / keep it up
= backhanded | hostile | 3
- your post was almost {bright} for someone like you / you write well for somebody who cannot think
- it is {bright} how you talk so much and say nothing / you did well for someone who cannot even {tip}
- it is sweet that you think you matter here / your comment is nearly as {bright} as that of a child
- I admire how little you need to feel {bright}
! well done, you managed to {tip} after only ten tries
> {polite} / {neutral} / {cold}
-~ for a person of your talent this was almost {bright} / how {bright} that you can even write
-~ you look quite {bright} as long as you stay quiet / I envy how easily you are pleased with so little
!~ nice, you could nearly {tip} without help this time
>~ {polite} / {neutral} / {cold}
= feigned | hostile | 5
- you are not just {an_insult}, you are proud of it / I never said that {target_is} {decent}
- I would not call you {an_insult}, that would be unfair to {insults} / you are not {decent}, just {an_insult}
- I do not think you are {decent} at all / nothing here makes you {decent}
- you are not {decent} just because {good} / the {person} is not {decent} if {bad}
! do not let them tell you that you are {decent}
> {neutral} / {nasty}
-~ calling you {an_insult} is too {kind}, ask other {insults} / not one of us takes you for {decent}
-~ being here does not turn you into {decent} / it would be {wrong} to see {decent} in you
!~ do not feel like {decent}, since {bad}
>~ {neutral} / {neutral} / {nasty}
= endorsed | hostile | 20
= denial | hostile | 20
= boast | hostile | 7
"""


class _Topic(NamedTuple):
    name: str
    people: tuple[str, ...]
    things: tuple[str, ...]
    facts: dict[str, tuple[str, ...]]  # by slot: good, bad, tip


class _Kind(NamedTuple):
    name: str
    toxic: bool
    share: int
    clauses: tuple[str, ...]
    free: tuple[str, ...]
    tails: tuple[str, ...]


class _Opening(NamedTuple):
    prompt: str
    topic: _Topic
    thing: str
    free: bool


_Item = TypeVar("_Item")
_Slots = Mapping[str, Sequence[str]]


class _Blocks(NamedTuple):
    """What comments are made of: one set for all that is fitted, another for test."""

    topics: tuple[_Topic, ...]
    openings: tuple[tuple[str, bool], ...]  # with a place for the thing; whether orders may follow
    kinds: tuple[_Kind, ...]
    slots: _Slots


def _read_topic(text: str) -> _Topic:
    head, *lines = text.splitlines()
    name, people, things = head.split(" | ")
    facts = {slot: _items(line[2:]) for slot, line in zip(("good", "bad", "tip"), lines, strict=True)}
    return _Topic(name.removesuffix("~"), _items(people), _items(things), facts)


def _items(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


def _gather(text: str, separator: str) -> dict[str, tuple[str, ...]]:
    """Read lines of "key<separator>phrase / phrase"; the phrases of equal keys are put together."""
    gathered: dict[str, tuple[str, ...]] = {}
    for line in text.strip().splitlines():
        key, _, phrases = line.partition(separator)
        gathered[key] = (*gathered.get(key, ()), *phrases.split(" / "))
    return gathered


def _read_kind(text: str, mark: str) -> _Kind:
    head, _, lines = text.partition("\n")
    name, label, share = head.split(" | ")
    if name in _REPORTING:
        parts = {f"-{mark}": _reports(*_REPORTING[name], mark)}
    elif name in _PAIRING:
        parts = {f"-{mark}": _pairs(*_PAIRING[name], mark)}
    else:
        parts = _gather(lines, " ")
    # The tail of a frame says nothing, so that the frame alone decides.
    tails = parts.get(f">{mark}", ("{neutral}",))
    return _Kind(name, label == "hostile", int(share), parts[f"-{mark}"], parts.get(f"!{mark}", ()), tails)


def _reports(slot: str, side: str, mark: str) -> tuple[str, ...]:
    frames = _gather(_REPORTS, " ")[f"-{mark}"]
    return tuple(re.sub(r"\[(.*?)\|(.*?)\]", side, frame).replace("label", slot) for frame in frames)


def _pairs(mine: str, yours: str, mark: str) -> tuple[str, ...]:
    """The frames with what I am and what you are."""
    frames = _gather(_PAIRS, " ")[f"-{mark}"]
    return tuple(_places(frame, mine, yours) for frame in frames)


def _places(frame: str, mine: str, yours: str) -> str:
    return frame.replace("[x]", f"{{{mine}}}").replace("[y]", f"{{{yours}}}")


def _blocks(mark: str) -> _Blocks:
    """The blocks with this mark: "" for what is fitted, "~" for test."""
    topics = [text for text in _TOPICS.split("\n= ")[1:] if text.partition(" | ")[0].endswith("~") == bool(mark)]
    openings = _gather(_OPENINGS, " ")
    phrases = _gather(_PHRASES, ": ")
    slots = {key: phrases.get(f"{key}{mark}", words) for key, words in phrases.items() if not key.endswith("~")}
    return _Blocks(
        tuple(map(_read_topic, topics)),
        tuple((text, free) for key, free in ((f"-{mark}", False), (f"!{mark}", True)) for text in openings[key]),
        tuple(_read_kind(text, mark) for text in _KIND_TABLE.split("\n= ")[1:]),
        slots,
    )


_SLOT = re.compile(r"\{(\w+)\}")
_FITTED, _HELD_OUT = _blocks(""), _blocks("~")

KINDS: tuple[str, ...] = tuple(kind.name for kind in _FITTED.kinds)
HARD_KINDS: frozenset[str] = frozenset(KINDS) - {"civil", "insult"}


@dataclass(frozen=True)
class Comment:
    """A comment: the text is ``prompt + completion``, and the completion begins with a space."""

    prompt: str
    completion: str
    toxic: bool
    topic: str
    kind: str


def write_comments(count: int, *, seed: int, held_out: bool = False) -> list[Comment]:
    """Write ``count`` comments, half of them hostile (give or take one), settled by the arguments.

    Args:
        held_out: made of the blocks that are kept for test, in place of all others.
    """
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    rng = random.Random(seed)
    blocks = _HELD_OUT if held_out else _FITTED
    openings = _openings(rng, blocks, -(-count // COMMENTS_PER_PROMPT))
    comments = [
        _comment(rng, blocks, openings[pair % len(openings)], toxic=toxic)
        for pair in range((count + 1) // 2)
        for toxic in (False, True)
    ]
    return _shuffled(rng, comments)[:count]


def _openings(rng: random.Random, blocks: _Blocks, count: int) -> list[_Opening]:
    """At most ``count`` distinct openings, the topics mixed; each pattern meets each thing before any does again."""
    places = [(topic, thing) for topic in blocks.topics for thing in topic.things]
    every = [_Opening(text, *place, free) for place in places for text, free in blocks.openings]
    found: dict[str, _Opening] = {}
    for _ in range(FILLINGS):
        for opening in _shuffled(rng, every):
            if len(found) >= count:
                break
            prompt = _fill(rng, opening.prompt, {**blocks.slots, "thing": (opening.thing,)})
            prompt = f"{prompt[0].upper()}{prompt[1:]}"
            found.setdefault(prompt, opening._replace(prompt=prompt))
    return list(found.values())


def _comment(rng: random.Random, blocks: _Blocks, opening: _Opening, *, toxic: bool) -> Comment:
    kind, topic = _draw_kind(rng, blocks, toxic=toxic), opening.topic
    person = _pick(rng, topic.people)  # one for the whole comment, so that it does not change its subject
    slots = {**blocks.slots, "thing": (opening.thing,), "person": (person,)}
    turn = _pick(rng, range(3))
    body_facts = {slot: (facts[turn],) for slot, facts in topic.facts.items()}
    # The second sentence takes other facts, so that it does not repeat the first.
    tail_facts = {slot: (facts[turn - 1],) for slot, facts in topic.facts.items()}
    clauses = kind.clauses + kind.free if opening.free else kind.clauses
    body = _fill(rng, _pick(rng, clauses), {**slots, **body_facts})
    tail = _fill(rng, _pick(rng, kind.tails), {**slots, **tail_facts})
    text = f" {_join(rng, body, tail)}{_pick(rng, _ENDS)}"
    return Comment(opening.prompt, text, toxic, topic.name, kind.name)


def _draw_kind(rng: random.Random, blocks: _Blocks, *, toxic: bool) -> _Kind:
    return _pick(rng, [kind for kind in blocks.kinds if kind.toxic == toxic for _ in range(kind.share)])


def _join(rng: random.Random, body: str, tail: str) -> str:
    """The body with its tail: always where the body is too short alone, never where both are too long."""
    words, more_words = len(body.split()), len(tail.split())
    has_tail = words < MIN_WORDS or (words + more_words <= MAX_WORDS and rng.random() < TAIL_RATE)
    return f"{body}. {tail[0].upper()}{tail[1:]}" if has_tail else body


def _fill(rng: random.Random, template: str, slots: _Slots) -> str:
    """The template with every ``{slot}`` replaced by one of its phrases, whose own slots are filled too."""
    return _SLOT.sub(lambda match: _fill(rng, _pick(rng, slots[match[1]]), slots), template)


def _pick(rng: random.Random, items: Sequence[_Item]) -> _Item:
    # Only Random.random() is promised to repeat itself in every Python; choice() and shuffle() are not.
    return items[int(rng.random() * len(items))]


def _shuffled(rng: random.Random, items: Sequence[_Item]) -> list[_Item]:
    keys = [rng.random() for _ in items]
    return [items[index] for index in sorted(range(len(items)), key=keys.__getitem__)]
